#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| doorward::fuzz::proxy_protocol(bytes));
