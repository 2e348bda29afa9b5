/* Writes down, in order, everything a program does to the files of one folder: each write with its bytes, each cut, each
 * sync, each change of a name. Loaded with LD_PRELOAD by torn.rs and syncs.rs; TORN_FOLDER is the folder, TORN_LOG the file
 * of it. The sync of that number in TORN_FAIL fails, once; with TORN_FAIL_FILE only those of the file of that name count. The
 * wall clock is TORN_DAYS days ahead. A change is written down before the program hears that it is done, so what a client was
 * told afterwards lies behind it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static int told = -1;
static long until_failure;
static time_t ahead;
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_open)(const char *, int, ...);
static int (*real_ftruncate)(int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_unlink)(const char *);
static int (*real_rename)(const char *, const char *);
static int (*real_linkat)(int, const char *, int, const char *, int);

__attribute__((constructor)) static void begin(void) {
    *(void **)&real_write = dlsym(RTLD_NEXT, "write");
    *(void **)&real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    *(void **)&real_open = dlsym(RTLD_NEXT, "open");
    *(void **)&real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    *(void **)&real_fsync = dlsym(RTLD_NEXT, "fsync");
    *(void **)&real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    *(void **)&real_unlink = dlsym(RTLD_NEXT, "unlink");
    *(void **)&real_rename = dlsym(RTLD_NEXT, "rename");
    *(void **)&real_linkat = dlsym(RTLD_NEXT, "linkat");
    if (!getenv("TORN_FOLDER") || !getenv("TORN_LOG")) abort();
    told = real_open(getenv("TORN_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (told < 0) abort();
    ahead = getenv("TORN_DAYS") ? atol(getenv("TORN_DAYS")) * 86400 : 0;
    until_failure = getenv("TORN_FAIL") ? atol(getenv("TORN_FAIL")) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = (int)syscall(SYS_clock_gettime, clock, now);
    if (done == 0 && clock == CLOCK_REALTIME) now->tv_sec += ahead;
    return done;
}

/* The name below the folder, or none. */
static const char *below(const char *path) {
    size_t within = strlen(getenv("TORN_FOLDER"));
    if (strncmp(path, getenv("TORN_FOLDER"), within) != 0 || path[within] != '/') return NULL;
    return strchr(path + within + 1, '/') ? NULL : path + within + 1;
}

static void note(char what, unsigned long long file, long long at, const void *bytes, size_t length, const char *name) {
    char head[4600];
    int size = snprintf(head, sizeof head, "%c %llu %lld %zu %s\n", what, file, at, length, name);
    /* At once: another process may write down what it does, too. */
    struct iovec parts[2] = {{head, (size_t)size}, {(void *)bytes, bytes ? length : 0}};
    if (writev(told, parts, 2) != (ssize_t)(parts[0].iov_len + parts[1].iov_len)) abort();
}

/* True if the file is one of the folder's: then `name` and `about` are filled in. */
static int ours(int fd, char *path, const char **name, struct stat *about) {
    char link[64];
    if (told < 0 || fd == told) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    if (length <= 0) return 0;
    path[length] = 0;
    *name = below(path);
    return *name && fstat(fd, about) == 0 && S_ISREG(about->st_mode) && about->st_nlink > 0;
}

static ssize_t written(int fd, const void *bytes, size_t length, off_t at, int placed) {
    char path[4096];
    const char *name;
    struct stat about;
    if (!ours(fd, path, &name, &about)) return placed ? real_pwrite(fd, bytes, length, at) : real_write(fd, bytes, length);
    pthread_mutex_lock(&one_at_a_time);
    ssize_t wrote = placed ? real_pwrite(fd, bytes, length, at) : real_write(fd, bytes, length);
    if (wrote > 0) note('W', about.st_ino, placed ? at : lseek(fd, 0, SEEK_CUR) - wrote, bytes, (size_t)wrote, name);
    pthread_mutex_unlock(&one_at_a_time);
    return wrote;
}

ssize_t write(int fd, const void *bytes, size_t length) { return written(fd, bytes, length, 0, 0); }
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return written(fd, bytes, length, at, 1); }
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) { return written(fd, bytes, length, at, 1); }

static int cut(int fd, off_t size) {
    char path[4096];
    const char *name;
    struct stat about;
    if (!ours(fd, path, &name, &about)) return real_ftruncate(fd, size);
    pthread_mutex_lock(&one_at_a_time);
    int done = real_ftruncate(fd, size);
    if (done == 0) note('T', about.st_ino, size, NULL, 0, name);
    pthread_mutex_unlock(&one_at_a_time);
    return done;
}

int ftruncate(int fd, off_t size) { return cut(fd, size); }
int ftruncate64(int fd, off64_t size) { return cut(fd, size); }

/* Nothing is written meanwhile: a sync vouches only for what was there when it began. */
static int synced(int fd, int (*sync)(int)) {
    char link[64], path[4096];
    struct stat about;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (told < 0 || length <= 0 || fstat(fd, &about) != 0) return sync(fd);
    path[length] = 0;
    int folder = strcmp(path, getenv("TORN_FOLDER")) == 0;
    if (!folder && !below(path)) return sync(fd);
    const char *only = getenv("TORN_FAIL_FILE");
    int counts = !only || (!folder && strcmp(only, below(path)) == 0);
    pthread_mutex_lock(&one_at_a_time);
    if (counts && until_failure > 0 && --until_failure == 0) {
        note('F', about.st_ino, 0, NULL, 0, folder ? "." : below(path));
        pthread_mutex_unlock(&one_at_a_time);
        errno = EIO;
        return -1;
    }
    int done = sync(fd);
    if (done == 0) note(folder ? 'D' : 'S', about.st_ino, 0, NULL, 0, folder ? "." : below(path));
    pthread_mutex_unlock(&one_at_a_time);
    return done;
}

int fsync(int fd) { return synced(fd, real_fsync); }
int fdatasync(int fd) { return synced(fd, real_fdatasync); }

static int opened(const char *path, int flags, mode_t mode) {
    if (!(flags & (O_CREAT | O_TRUNC)) || told < 0) return real_open(path, flags, mode);
    pthread_mutex_lock(&one_at_a_time);
    int fd = real_open(path, flags, mode);
    char real[4096];
    const char *name;
    struct stat about;
    /* Made, or emptied: either way it holds nothing now. */
    if (fd >= 0 && ours(fd, real, &name, &about) && about.st_size == 0) note('C', about.st_ino, 0, NULL, 0, name);
    pthread_mutex_unlock(&one_at_a_time);
    return fd;
}

#define OPENS(name)                                \
    int name(const char *path, int flags, ...) {   \
        va_list rest;                              \
        va_start(rest, flags);                     \
        mode_t mode = (mode_t)va_arg(rest, int);   \
        va_end(rest);                              \
        return opened(path, flags, mode);          \
    }
OPENS(open)
OPENS(open64)

static const char *named(const char *path, char *absolute) {
    char *slash;
    strncpy(absolute, path, 4095);
    absolute[4095] = 0;
    if ((slash = strrchr(absolute, '/')) == NULL) return NULL;
    *slash = 0;
    char folder[4096];
    if (!realpath(absolute, folder)) return NULL;
    snprintf(absolute, 4096, "%s%s", folder, path + (slash - absolute));
    return below(absolute);
}

int unlink(const char *path) {
    char absolute[4096];
    const char *name = named(path, absolute);
    pthread_mutex_lock(&one_at_a_time);
    int done = real_unlink(path);
    if (done == 0 && name) note('U', 0, 0, NULL, 0, name);
    pthread_mutex_unlock(&one_at_a_time);
    return done;
}

/* The other name is what follows. */
int rename(const char *from, const char *to) {
    char first[4096], second[4096];
    const char *before = named(from, first), *after = named(to, second);
    pthread_mutex_lock(&one_at_a_time);
    int done = real_rename(from, to);
    if (done == 0 && before && after) note('R', 0, 0, before, strlen(before), after);
    pthread_mutex_unlock(&one_at_a_time);
    return done;
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    char first[4096], second[4096];
    const char *before = named(from, first), *after = named(to, second);
    pthread_mutex_lock(&one_at_a_time);
    int done = real_linkat(from_folder, from, to_folder, to, flags);
    if (done == 0 && before && after) note('L', 0, 0, before, strlen(before), after);
    pthread_mutex_unlock(&one_at_a_time);
    return done;
}
