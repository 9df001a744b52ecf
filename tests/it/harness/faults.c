/* Faults that real parts cannot be made to have on command. Preloaded with LD_PRELOAD.

   Some variables name a file. While the file of TEST_DISK_FAULT holds a number, reads, writes and syncs of *.redb
   files fail with that errno; if it is negative, only syncs do. While the file of TEST_TRAIL_FAULT holds one, writes
   to *.jsonl files fail. The file of TEST_CLOCK_AHEAD holds the seconds by which the wall clock is ahead; a number
   as large as the seconds since 1970 is a time at which the clock stands still. If the file of TEST_PROC_STATUS
   exists, it is read instead of /proc/self/status.

   TEST_KILL, as CLASS:COUNT:WHEN, kills the process by SIGKILL before or after its COUNTth operation of a class:
   `write` and `sync` of *.redb files, `send` to the port in TEST_KILL_PORT, `ask` to the port in
   TEST_KILL_STORE_PORT, and `answer` on any other connection. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static ssize_t (*real_read)(int, void *, size_t);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void find(void) {
    real_read = (ssize_t (*)(int, void *, size_t)) dlsym(RTLD_NEXT, "read");
    real_clock_gettime = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
}

/* The number in the file that a variable names, 0 without one. */
static long number_in(const char *variable) {
    const char *path = getenv(variable);
    if (!path) return 0;
    int kept = errno, fd = open(path, O_RDONLY | O_CLOEXEC);
    char text[32] = "";
    if (fd >= 0) {
        if (real_read(fd, text, sizeof text - 1) < 0) text[0] = 0;
        close(fd);
    }
    errno = kept;
    return strtol(text, NULL, 10);
}

static int ends_in(int fd, const char *ending) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path), last = strlen(ending);
    return length > last && memcmp(path + length - last, ending, last) == 0;
}

static int is_store(int fd) { return ends_in(fd, ".redb"); }

/* The error with which an operation of a class on this file must fail, or 0. */
static int fault_of(int fd, const char *class) {
    long fault = number_in("TEST_DISK_FAULT");
    if (fault < 0) fault = strcmp(class, "sync") ? 0 : -fault;
    if (fault && is_store(fd)) return (int) fault;
    fault = number_in("TEST_TRAIL_FAULT");
    return fault && ends_in(fd, ".jsonl") ? (int) fault : 0;
}

/* The class of operations on this socket: `send`, `ask`, `answer`, or none. */
static const char *class_of_socket(int fd) {
    struct sockaddr_in peer;
    socklen_t size = sizeof peer;
    const char *port = getenv("TEST_KILL_PORT"), *store = getenv("TEST_KILL_STORE_PORT");
    if (!port || getpeername(fd, (struct sockaddr *) &peer, &size) || peer.sin_family != AF_INET) return "";
    if (store && ntohs(peer.sin_port) == atoi(store)) return "ask";
    return ntohs(peer.sin_port) == atoi(port) ? "send" : "answer";
}

/* Whether the process is killed before (`b`) or after (`a`) this operation; 0 if not. */
static char kill_at(const char *class) {
    static long count;
    const char *kill = getenv("TEST_KILL");
    size_t length = strlen(class);
    if (!kill || !length || strncmp(kill, class, length) || kill[length] != ':') return 0;
    char *when;
    long wanted = strtol(kill + length + 1, &when, 10);
    return __sync_add_and_fetch(&count, 1) == wanted && *when == ':' ? when[1] : 0;
}

static void end_if(int now) {
    if (now) kill(getpid(), SIGKILL);
}

#define FAILING(type, name, class, declared, passed)                   \
    type name declared {                                               \
        static type (*real) declared;                                  \
        if (!real) real = (type (*) declared) dlsym(RTLD_NEXT, #name); \
        int fault = fault_of(fd, class);                                      \
        if (fault) { errno = fault; return -1; }                       \
        char end = getenv("TEST_KILL") && *class && is_store(fd) ? kill_at(class) : 0; \
        end_if(end == 'b');                                            \
        type result = real passed;                                     \
        end_if(end == 'a');                                            \
        return result;                                                 \
    }

FAILING(ssize_t, pread64, "", (int fd, void *to, size_t count, off64_t at), (fd, to, count, at))
FAILING(ssize_t, pwrite64, "write", (int fd, const void *from, size_t count, off64_t at), (fd, from, count, at))
FAILING(ssize_t, write, "", (int fd, const void *from, size_t count), (fd, from, count))
FAILING(int, fdatasync, "sync", (int fd), (fd))
FAILING(int, fsync, "sync", (int fd), (fd))

#define SENDING(name, declared, passed)                                \
    ssize_t name declared {                                            \
        static ssize_t (*real) declared;                               \
        if (!real) real = (ssize_t (*) declared) dlsym(RTLD_NEXT, #name); \
        char end = getenv("TEST_KILL") ? kill_at(class_of_socket(fd)) : 0; \
        end_if(end == 'b');                                            \
        ssize_t result = real passed;                                  \
        end_if(end == 'a');                                            \
        return result;                                                 \
    }

SENDING(send, (int fd, const void *from, size_t count, int flags), (fd, from, count, flags))
SENDING(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))

int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    if (!real) real = (int (*)(const char *, int, ...)) dlsym(RTLD_NEXT, "open64");
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    const char *instead = getenv("TEST_PROC_STATUS");
    int told = instead && strcmp(path, "/proc/self/status") == 0 && access(instead, F_OK) == 0;
    return real(told ? instead : path, flags, mode);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = real_clock_gettime(clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) {
        long ahead = number_in("TEST_CLOCK_AHEAD");
        if (ahead > 1000000000) {
            time->tv_sec = ahead;
            time->tv_nsec = 0;
        } else {
            time->tv_sec += ahead;
        }
    }
    return result;
}
