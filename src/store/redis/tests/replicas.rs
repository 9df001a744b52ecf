//! Writes that wait for a second server.

use super::*;

/// Nothing reaches one that is in its first sync, and deliveries would be refused for as long as that takes.
#[test]
fn only_a_replica_that_follows_is_waited_for() {
    let line = |state: &str| format!("ip=10.0.0.7,port=6379,state={state},offset=14,lag=0");
    for (info, expected) in [
        ("role:master\r\nconnected_slaves:0\r\n".to_owned(), false),
        (format!("connected_slaves:1\r\nslave0:{}\r\n", line("online")), true),
        (format!("connected_slaves:1\r\nslave0:{}\r\n", line("wait_bgsave")), false),
        (format!("connected_slaves:1\r\nslave0:{}\r\n", line("send_bulk")), false),
        (format!("connected_slaves:2\r\nslave0:{}\r\nslave1:{}\r\n", line("send_bulk"), line("online")), true),
        ("role:slave\r\nslave_read_only:1\r\nslave_x:state=online\r\n".to_owned(), false),
        (String::new(), false),
    ] {
        assert_eq!(has_replica(&info), expected, "{info}");
    }
}
