//! The process that holds a pod's namespaces open: reaps what the pod orphans, ends on SIGTERM or SIGINT.
//! Compiled by build.rs into a static program without a library.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {main}", "ud2", main = sym main);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "bl {main}", "brk 1", main = sym main);

#[cfg(target_arch = "x86_64")]
mod call {
    pub const SIGPROCMASK: usize = 14;
    pub const EXIT_GROUP: usize = 231;
    pub const WAIT4: usize = 61;
    pub const SIGTIMEDWAIT: usize = 128;
}
#[cfg(target_arch = "aarch64")]
mod call {
    pub const SIGPROCMASK: usize = 135;
    pub const EXIT_GROUP: usize = 94;
    pub const WAIT4: usize = 260;
    pub const SIGTIMEDWAIT: usize = 137;
}

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIGCHLD: isize = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
/// The kernel's signal sets are 64 bits wide.
const SET_BYTES: usize = 8;

extern "C" fn main() -> ! {
    let set: u64 = [SIGINT, SIGTERM, SIGCHLD].iter().fold(0, |set, signal| set | 1 << (signal - 1));
    let set = &raw const set as usize;
    // Blocked signals stay pending even for process 1, which otherwise drops what it does not handle.
    unsafe { system(call::SIGPROCMASK, [SIG_BLOCK, set, 0, SET_BYTES]) };
    loop {
        match unsafe { system(call::SIGTIMEDWAIT, [set, 0, 0, SET_BYTES]) } {
            SIGINT | SIGTERM => unsafe {
                system(call::EXIT_GROUP, [0; 4]);
            },
            // One signal may stand for many children.
            SIGCHLD => while unsafe { system(call::WAIT4, [usize::MAX, 0, WNOHANG, 0]) } > 0 {},
            _ => {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn system(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let answer;
    unsafe {
        asm!("syscall", inlateout("rax") number => answer, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer
}

#[cfg(target_arch = "aarch64")]
unsafe fn system(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let answer;
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => answer, in("x1") b, in("x2") c, in("x3") d,
             options(nostack));
    }
    answer
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    unsafe { system(call::EXIT_GROUP, [1, 0, 0, 0]) };
    loop {}
}
