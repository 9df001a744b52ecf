//! How many files the process may have open, connections included, and which of them clients cannot take: health
//! checks, operators, the store and the audit trail need some, too, and without them clients would stop all of these.
//!
//! Nothing is counted. The kernel gives each file the lowest number that is free, so the number of a new one says how
//! many there are at least.

use std::{io, os::fd::AsRawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many files are kept back, unless that is more than a quarter of all.
const KEPT: u64 = 128;

/// The part of the files for connections, as a divisor, that those to upstreams leave to clients. A client can make
/// Doorward open many of the former over a few of its own.
const FOR_CLIENTS: u64 = 8;

/// The largest share of the files for connections, in percent, that clients may be given. With more, they could also
/// take all that connections to upstreams may have.
pub const MAX_CLIENT_SHARE: u64 = 75;

/// How many files the process may have open, if that is limited.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Raises the limit as far as the process may do so by itself. The lower one, often 1024, is meant for programs that
/// cannot use more.
pub fn raise_limit() -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(())
}

/// How many of these files connections of clients and to upstreams may take together.
pub fn for_connections(limit: u64) -> u64 {
    limit - KEPT.min(limit / 4)
}

/// Whether a client may have this new connection.
pub fn has_room_for_client(connection: &impl AsRawFd, limit: Option<u64>) -> bool {
    is_below(connection, limit.map(for_connections))
}

/// Whether this new socket may connect to an upstream.
pub fn has_room_for_upstream(socket: &impl AsRawFd, limit: Option<u64>) -> bool {
    is_below(socket, limit.map(for_upstreams))
}

fn for_upstreams(limit: u64) -> u64 {
    let all = for_connections(limit);
    all - all / FOR_CLIENTS
}

fn is_below(file: &impl AsRawFd, most: Option<u64>) -> bool {
    let number = u64::try_from(file.as_raw_fd()).unwrap_or(u64::MAX);
    most.is_none_or(|most| number < most)
}

#[cfg(test)]
mod tests {
    use std::os::fd::RawFd;

    use super::*;

    struct Numbered(RawFd);

    impl AsRawFd for Numbered {
        fn as_raw_fd(&self) -> RawFd {
            self.0
        }
    }

    /// The lower limit of 1024 stayed in force, whatever the process was allowed.
    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        raise_limit().unwrap();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
        assert_eq!(limit(), maximum);
    }

    /// With 90 %, as many clients as there may be left no file to any connection to an upstream.
    #[test]
    fn clients_leave_files_for_connections_to_upstreams_at_the_largest_share() {
        for limit in [1024, 20_000, 1_000_000] {
            let clients = for_connections(limit) * MAX_CLIENT_SHARE / 100;
            assert!(clients + limit / 10 <= for_upstreams(limit), "{limit}");
        }
    }

    #[test]
    fn clients_and_upstreams_leave_files_for_everything_else() {
        for (limit, client, upstream) in
            [(Some(1024), 896, 784), (Some(100), 75, 66), (Some(1_000_000), 999_872, 874_888), (Some(4), 3, 3)]
        {
            for (number, fits_client, fits_upstream) in [
                (upstream - 1, true, true),
                (upstream, upstream < client, false),
                (client - 1, true, upstream == client),
                (client, false, false),
            ] {
                let file = Numbered(number);
                assert_eq!(has_room_for_client(&file, limit), fits_client, "{number} of {limit:?}");
                assert_eq!(has_room_for_upstream(&file, limit), fits_upstream, "{number} of {limit:?}");
            }
        }
        assert!(has_room_for_client(&Numbered(RawFd::MAX), None));
        assert!(has_room_for_upstream(&Numbered(RawFd::MAX), None));
    }
}
