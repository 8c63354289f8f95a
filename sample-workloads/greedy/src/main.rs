//! Takes what it can get, to show that a limit holds: spins for ever, or with MEMORY set eats
//! memory, a mebibyte at a time, until it is stopped.

use std::hint::black_box;
use std::{env, thread, time::Duration};

fn main() {
    if env::var_os("MEMORY").is_some() { eat() } else { spin() }
}

fn spin() -> ! {
    println!("spinning");
    let mut rounds = 0_u64;
    loop {
        for _ in 0..1_000_000_000 {
            rounds = black_box(rounds.wrapping_add(1));
        }
        println!("{rounds} rounds");
    }
}

fn eat() -> ! {
    let mut eaten = Vec::new();
    loop {
        eaten.push(vec![1_u8; 1 << 20]);
        println!("{} MiB", eaten.len());
        black_box(&eaten);
        thread::sleep(Duration::from_millis(5));
    }
}
