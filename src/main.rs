//! The program `doorward`: its allocator, and the commands of [`doorward::cli`].

use std::process::ExitCode;

// Measured against the system's allocator, it uses less CPU per request and less memory per idle connection. Huge pages
// are off, as they keep 2 MiB where a few kilobytes are in use: 33 MiB instead of 20 when idle.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    doorward::cli::main()
}
