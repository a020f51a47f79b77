//! Mistakes that the checkers of memory must find, so that their silence elsewhere means something:
//! `mistakes overread` and `mistakes leak` for valgrind, `mistakes race` for ThreadSanitizer.

use std::hint::black_box;

static mut COUNT: u64 = 0;

fn race() {
    let count = || {
        for _ in 0..1000 {
            // SAFETY: none, on purpose.
            unsafe { *black_box(&raw mut COUNT) += 1 }
        }
    };
    let other = std::thread::spawn(count);
    count();
    other.join().unwrap();
}

fn main() {
    let values = black_box(vec![1_u8; 100]);
    match std::env::args().nth(1).as_deref() {
        // SAFETY: none, on purpose.
        Some("overread") => println!("{}", unsafe { *values.as_ptr().add(values.len()) }),
        Some("leak") => std::mem::forget(values),
        Some("race") => race(),
        _ => println!("no mistake"),
    }
}
