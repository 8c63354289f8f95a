//! Counts the primes below a bound and ends: a program for WASI preview 1. The bound is the first
//! argument; an exit code may follow, for trying what a failure looks like.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let bound = match args.next().map(|bound| bound.parse::<usize>()) {
        None => 1_000_000,
        Some(Ok(bound)) => bound,
        Some(Err(error)) => {
            eprintln!("usage: batch [BOUND [EXIT-CODE]]: {error}");
            return ExitCode::from(2);
        }
    };
    println!("{} primes below {bound}", primes_below(bound));
    args.next().and_then(|code| code.parse::<u8>().ok()).map_or(ExitCode::SUCCESS, ExitCode::from)
}

fn primes_below(bound: usize) -> usize {
    let mut composite = vec![false; bound];
    let mut count = 0;
    for number in 2..bound {
        if composite[number] {
            continue;
        }
        count += 1;
        // Beyond the root its square is out of reach, and of a 32-bit guest's numbers.
        if number <= bound / number {
            for multiple in (number * number..bound).step_by(number) {
                composite[multiple] = true;
            }
        }
    }
    count
}
