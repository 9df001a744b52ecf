//! How much memory is left, and what is shed when it runs short, the cheapest first.
//!
//! The kernel kills a process that exceeds the limit of its cgroup, and with it every stream and every request, so it
//! is better to turn some away before. Health, metrics and operator commands are always served.

mod requests;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use prometheus_client::{
    metrics::gauge::Gauge,
    registry::{Registry, Unit},
};

pub use self::requests::{Client, RequestMemory, Taken, Taking};
use crate::{
    admin::health::ComponentHandle,
    config::{raw::Limits, values::Size},
};

/// The part of the limit, as a divisor, that requests in progress may take, and the least that they get. Half is for
/// bodies that are read whole, and the rest for everything else.
const FOR_REQUESTS: u64 = 4;
const LEAST_FOR_REQUESTS: u64 = 1 << 20;

/// Below this, too little is left beside the program for a flood to be shed without harm to others.
pub const LITTLE: Size = Size::mib(128);

/// How short memory is. Each level also sheds what the levels before it shed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Calm,
    /// Unused connections are closed sooner.
    CloseIdle,
    /// No new streams (upgrades, watches, followed logs).
    RefuseStreams,
    /// No new connections.
    RefuseConnections,
    /// No requests.
    RefuseRequests,
}

impl Level {
    /// The levels that shed something, each with the share of the limit, in percent, at which it begins.
    fn ladder(limits: &Limits) -> [(u8, Self); 4] {
        [
            (limits.memory_close_idle, Self::CloseIdle),
            (limits.memory_refuse_streams, Self::RefuseStreams),
            (limits.memory_refuse_connections, Self::RefuseConnections),
            (limits.memory_refuse_requests, Self::RefuseRequests),
        ]
    }

    /// `limit` is what may be used, in bytes.
    fn of(used: u64, limit: u64, limits: &Limits) -> Self {
        let reached = |(percent, _): &(u8, Self)| u128::from(used) * 100 >= u128::from(limit) * u128::from(*percent);
        Self::ladder(limits).into_iter().rfind(reached).map_or(Self::Calm, |(_, level)| level)
    }

    fn from_u8(number: u8) -> Self {
        let levels = [Self::CloseIdle, Self::RefuseStreams, Self::RefuseConnections, Self::RefuseRequests];
        levels.into_iter().find(|level| *level as u8 == number).unwrap_or_default()
    }

    const fn sheds(self) -> &'static str {
        match self {
            Self::Calm => "nothing",
            Self::CloseIdle => "unused connections are closed sooner",
            Self::RefuseStreams => "new streams are refused",
            Self::RefuseConnections => "new connections are refused",
            Self::RefuseRequests => "all requests are refused",
        }
    }
}

/// The level, shared by everything that sheds load. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    level: Arc<AtomicU8>,
    headroom: Headroom,
    requests: RequestMemory,
    metrics: MemoryMetrics,
}

/// The bytes in use from which new connections are refused; 0 without a limit. Clones share it.
#[derive(Clone, Debug, Default)]
struct Headroom(Arc<AtomicU64>);

impl Headroom {
    /// See [`Memory::fits`].
    fn fits(&self, more: usize) -> bool {
        match self.0.load(Ordering::Relaxed) {
            0 => true,
            from => used_here().unwrap_or(0).saturating_add(u64::try_from(more).unwrap_or(u64::MAX)) < from,
        }
    }
}

/// The metrics of the memory of the process.
#[derive(Clone, Debug, Default)]
pub struct MemoryMetrics {
    used: Gauge,
    limit: Gauge,
}

impl MemoryMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let memory = registry.sub_registry_with_prefix("memory");
        memory.register_with_unit("used", "Memory that cannot be taken back", Unit::Bytes, self.used.clone());
        memory.register_with_unit(
            "limit",
            "Memory that may be used beside code and files; 0 without a limit",
            Unit::Bytes,
            self.limit.clone(),
        );
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(MemoryMetrics::default())
    }
}

impl Memory {
    pub fn new(metrics: MemoryMetrics) -> Self {
        let headroom = Headroom::default();
        Self { level: Arc::default(), requests: RequestMemory::measured_by(headroom.clone()), headroom, metrics }
    }

    /// The memory that requests in progress share.
    pub fn requests(&self) -> &RequestMemory {
        &self.requests
    }

    pub fn level(&self) -> Level {
        Level::from_u8(self.level.load(Ordering::Relaxed))
    }

    /// Whether the process, with `more` bytes, would stay below the share at which new connections are refused.
    /// Measures the memory at each call: between two calls of [`look`](Self::look), a fast network can deliver more
    /// than is left.
    pub fn fits(&self, more: usize) -> bool {
        self.headroom.fits(more)
    }

    /// Measures the memory in use and reports to the component. Returns what buffered bodies may use, as
    /// [`for_bodies`] does.
    pub fn look(&self, limits: &Limits, component: &ComponentHandle) -> Size {
        let used = used_here().unwrap_or(0);
        let applies = limit(limits);
        let limit = applies.map(|limit| Limits::usable(limit).0);
        let level = limit.map_or(Level::Calm, |limit| Level::of(used, limit, limits));
        self.metrics.used.set(i64::try_from(used).unwrap_or(i64::MAX));
        self.metrics.limit.set(limit.map_or(0, |limit| i64::try_from(limit).unwrap_or(i64::MAX)));
        self.level.store(level as u8, Ordering::Relaxed);
        let share = |limit: u64| u128::from(limit) * u128::from(limits.memory_refuse_connections) / 100;
        let refuses_from = limit.map_or(0, |limit| u64::try_from(share(limit)).unwrap_or(u64::MAX).max(1));
        self.headroom.0.store(refuses_from, Ordering::Relaxed);
        self.requests.set_limit(for_requests(limit));
        let why = || format!("{} of {} are in use: {}", Size(used), Size(limit.unwrap_or(0)), level.sheds());
        match level {
            Level::Calm => component.ok(),
            Level::CloseIdle | Level::RefuseStreams => component.degraded(why()),
            Level::RefuseConnections | Level::RefuseRequests => component.failed(why()),
        }
        limits.buffered_within(applies)
    }
}

/// The limit that applies: that of the configuration, else that of the cgroup.
pub fn limit(limits: &Limits) -> Option<Size> {
    limits.memory.or_else(|| limit_of_cgroup(Path::new("/")).map(Size))
}

/// Whether a limit is so low that it is to be warned of.
pub fn is_little(limit: Size) -> bool {
    limit < LITTLE
}

/// The memory that buffered bodies may use within the limit that applies.
pub fn for_bodies(limits: &Limits) -> Size {
    limits.buffered_within(limit(limits))
}

/// The memory that requests in progress may take together within this limit, in bytes.
fn for_requests(limit: Option<u64>) -> usize {
    let share = limit.map(|limit| (limit / FOR_REQUESTS).max(LEAST_FOR_REQUESTS));
    share.and_then(|share| usize::try_from(share).ok()).unwrap_or(usize::MAX)
}

/// Anonymous memory of this process, in bytes. File pages do not count, as the kernel can reclaim them, and those that
/// the process cannot do without are [kept](Limits::usable).
fn used_here() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The smallest limit of the cgroups that this process is in, version 2 and version 1. `root` is `/`.
fn limit_of_cgroup(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (mount, file) = match fields.next() {
            Some("") => ("sys/fs/cgroup", "memory.max"),
            Some(controllers) if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let group = fields.next().unwrap_or_default();
        // Within a container the path may be that of the host, which does not exist there; its ancestors apply all the
        // same.
        let folders = Path::new(group)
            .ancestors()
            .map(|group| root.join(mount).join(group.strip_prefix("/").unwrap_or(group)).join(file));
        folders.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()).collect()
    });
    // Version 1 writes "none" as a number near 2^63.
    limits.filter(|limit| *limit < 1 << 62).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::health::{Gate, Health, Status},
        clock::Clock,
    };

    #[test]
    fn each_level_begins_at_its_share() {
        for (used, level) in [
            (0, Level::Calm),
            (849, Level::Calm),
            (850, Level::CloseIdle),
            (900, Level::RefuseStreams),
            (949, Level::RefuseStreams),
            (950, Level::RefuseConnections),
            (979, Level::RefuseConnections),
            (980, Level::RefuseRequests),
            (u64::MAX, Level::RefuseRequests),
        ] {
            assert_eq!(Level::of(used, 1000, &Limits::default()), level, "{used}");
            assert_eq!(Level::from_u8(level as u8), level);
        }
        assert_eq!(Level::of(1, 0, &Limits::default()), Level::RefuseRequests);
    }

    #[test]
    fn of_memory_levels_with_the_same_limit_the_strictest_applies() {
        let limits = Limits {
            memory_close_idle: 50,
            memory_refuse_streams: 50,
            memory_refuse_connections: 60,
            ..Limits::default()
        };
        for (used, level) in [(49, Level::Calm), (50, Level::RefuseStreams), (60, Level::RefuseConnections)] {
            assert_eq!(Level::of(used, 100, &limits), level, "{used}");
        }
    }

    #[test]
    fn the_memory_level_is_reported_and_cleared() {
        let component = Health::new(Clock::default()).component("memory", Gate::Readiness);
        let memory = Memory::default();
        let of = |limit| Limits { memory: Some(limit), ..Limits::default() };
        memory.look(&of(Size::kib(1)), &component);
        assert_eq!((memory.level(), component.status()), (Level::RefuseRequests, Status::Failed));
        assert!(memory.metrics.used.get() > 100_000, "{}", memory.metrics.used.get());
        memory.look(&of(Size(1 << 50)), &component);
        assert_eq!((memory.level(), component.status()), (Level::Calm, Status::Ok));
    }

    /// Whoever sent bodies that never ended had the process killed if its limit was below the default of
    /// `buffered_bytes`.
    #[test]
    fn buffered_bodies_get_at_most_half_of_the_memory() {
        let of = |memory, buffered_bytes| Limits { memory: Some(memory), buffered_bytes, ..Limits::default() };
        assert_eq!(for_bodies(&of(Size::mib(64), Size::mib(256))), Size::kib(21 * 1024 + 512));
        assert_eq!(for_bodies(&of(Size::mib(512), Size::mib(256))), Size::mib(256));
        assert_eq!(for_bodies(&of(Size::mib(512), Size::mib(16))), Size::mib(16));
        assert_eq!(Limits::default().buffered_within(None), Size::mib(256), "without a limit");
    }

    /// The kernel took the pages of the program's own code, which it then read again for each request: nobody was
    /// answered any more, although memory was said to be left.
    #[test]
    fn a_small_limit_keeps_memory_for_code_and_files() {
        let mib = [32, 64, 128, 256, 512, 4096].map(|limit| Limits::usable(Size::mib(limit)));
        assert_eq!(mib, [20, 43, 110, 244, 512, 4096].map(Size::mib));
        let usable = Limits::usable(Size::mib(64)).0;
        assert_eq!(Level::of(41 << 20, usable, &Limits::default()), Level::RefuseConnections);
        let component = Health::new(Clock::default()).component("memory", Gate::Readiness);
        let memory = Memory::default();
        memory.look(&Limits { memory: Some(Size::mib(64)), ..Limits::default() }, &component);
        assert_eq!(memory.metrics.limit.get(), 43 << 20);
        assert!(is_little(Size::mib(127)) && !is_little(Size::mib(128)));
    }

    #[test]
    fn the_memory_that_bodies_are_said_to_need_is_enough() {
        for mib in [1, 30, 128, 250, 256, 1000] {
            let limits = Limits { buffered_bytes: Size::mib(mib), ..Limits::default() };
            assert_eq!(limits.buffered_within(Some(limits.memory_for_buffered())), limits.buffered_bytes, "{mib} MiB");
        }
    }

    #[test]
    fn what_fits_into_memory_depends_on_its_limit() {
        let component = Health::new(Clock::default()).component("memory", Gate::Readiness);
        let memory = Memory::default();
        assert!(memory.fits(usize::MAX), "no limit is known yet");
        memory.look(&Limits { memory: Some(Size(1 << 50)), ..Limits::default() }, &component);
        assert!(memory.fits(1 << 20) && !memory.fits(1 << 50));
        memory.look(&Limits { memory: Some(Size::kib(1)), ..Limits::default() }, &component);
        assert!(!memory.fits(0));
    }

    #[test]
    fn the_smallest_limit_of_a_cgroup_counts() {
        type Files = &'static [(&'static str, &'static str)];
        let cases: [(&str, Files, Option<u64>); 6] = [
            ("0::/\n", &[("sys/fs/cgroup/memory.max", "max\n")], None),
            ("0::/\n", &[("sys/fs/cgroup/memory.max", "67108864\n")], Some(64 << 20)),
            (
                "0::/pod/container\n",
                &[("sys/fs/cgroup/pod/memory.max", "1000\n"), ("sys/fs/cgroup/pod/container/memory.max", "max\n")],
                Some(1000),
            ),
            ("0::/of/the/host\n", &[("sys/fs/cgroup/memory.max", "2000\n")], Some(2000)),
            (
                "4:memory:/a\n3:cpu,cpuacct:/a\n",
                &[
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "3000\n"),
                    ("sys/fs/cgroup/a/memory.max", "1\n"),
                ],
                Some(3000),
            ),
            ("nonsense", &[], None),
        ];
        for (groups, files, limit) in cases {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in [("proc/self/cgroup", groups)].iter().chain(files) {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            assert_eq!(limit_of_cgroup(root.path()), limit, "{groups}");
        }
    }
}
