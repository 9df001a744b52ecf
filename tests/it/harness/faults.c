/* What the real parts cannot be made to show on command. Preloaded with LD_PRELOAD.

   While the file that TEST_DISK_FAULT names holds a number, reads and writes of *.redb files fail with that errno. The
   wall clock is ahead by the seconds that the file holds which TEST_CLOCK_AHEAD names. Where the file that
   TEST_PROC_STATUS names exists, it is read in place of /proc/self/status. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
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

/* The error that an operation on this file has to fail with, or 0. */
static int fault_of(int fd) {
    long fault = number_in("TEST_DISK_FAULT");
    if (!fault) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    int ours = length > 5 && memcmp(path + length - 5, ".redb", 5) == 0;
    return ours ? (int) fault : 0;
}

#define FAILING(type, name, declared, passed)                          \
    type name declared {                                               \
        static type (*real) declared;                                  \
        if (!real) real = (type (*) declared) dlsym(RTLD_NEXT, #name); \
        int fault = fault_of(fd);                                      \
        if (fault) { errno = fault; return -1; }                       \
        return real passed;                                            \
    }

FAILING(ssize_t, pread64, (int fd, void *to, size_t count, off64_t at), (fd, to, count, at))
FAILING(ssize_t, pwrite64, (int fd, const void *from, size_t count, off64_t at), (fd, from, count, at))
FAILING(int, fdatasync, (int fd), (fd))
FAILING(int, fsync, (int fd), (fd))

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
    if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += number_in("TEST_CLOCK_AHEAD");
    return result;
}
