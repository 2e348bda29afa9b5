/* Keeps beside a folder what a disk would still have after the power went: each file as it was when it was last synced,
 * and the names that were there when the folder was. Loaded with LD_PRELOAD by power_loss.rs; LOSS_FOLDER is the folder,
 * LOSS_KEPT where the copies go: a file by the number of its inode, and `names`. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);

static const char *folder(void) { return getenv("LOSS_FOLDER"); }

/* Never half: written beside and renamed, as the process may be killed at any time. */
static void into_place(const char *beside, unsigned long long inode) {
    char final[4096];
    snprintf(final, sizeof final, "%s/%llu", getenv("LOSS_KEPT"), inode);
    if (rename(beside, final) != 0) abort();
}

static void keep_file(const char *from, unsigned long long inode) {
    char beside[4096], bytes[65536];
    snprintf(beside, sizeof beside, "%s/beside", getenv("LOSS_KEPT"));
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (in < 0 || out < 0) abort();
    ssize_t got;
    while ((got = read(in, bytes, sizeof bytes)) > 0)
        if (write(out, bytes, (size_t)got) != got) abort();
    if (got < 0) abort();
    close(in);
    close(out);
    into_place(beside, inode);
}

static void keep_names(int with_content) {
    char beside[4096], final[4096], path[4096];
    snprintf(beside, sizeof beside, "%s/names.beside", getenv("LOSS_KEPT"));
    snprintf(final, sizeof final, "%s/names", getenv("LOSS_KEPT"));
    DIR *entries = opendir(folder());
    if (!entries) return;
    FILE *list = fopen(beside, "we");
    if (!list) abort();
    struct dirent *entry;
    while ((entry = readdir(entries))) {
        if (entry->d_type != DT_REG) continue;
        fprintf(list, "%llu %s\n", (unsigned long long)entry->d_ino, entry->d_name);
        snprintf(path, sizeof path, "%s/%s", folder(), entry->d_name);
        if (with_content) keep_file(path, (unsigned long long)entry->d_ino);
    }
    closedir(entries);
    if (fclose(list) != 0 || rename(beside, final) != 0) abort();
}

static void synced(int fd) {
    char link[64], path[4096];
    struct stat about;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0 || fstat(fd, &about) != 0) return;
    path[length] = 0;
    size_t within = strlen(folder());
    if (strncmp(path, folder(), within) != 0 || (path[within] != 0 && path[within] != '/')) return;
    pthread_mutex_lock(&one_at_a_time);
    if (S_ISDIR(about.st_mode)) keep_names(0);
    else keep_file(link, (unsigned long long)about.st_ino);
    pthread_mutex_unlock(&one_at_a_time);
}

__attribute__((constructor)) static void begin(void) {
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (!folder() || !getenv("LOSS_KEPT")) abort();
    /* What was there before the process was, is on the disk. */
    keep_names(1);
}

int fsync(int fd) {
    int told = real_fsync(fd);
    if (told == 0) synced(fd);
    return told;
}

int fdatasync(int fd) {
    int told = real_fdatasync(fd);
    if (told == 0) synced(fd);
    return told;
}
