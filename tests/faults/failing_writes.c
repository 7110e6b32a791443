// Preloaded into a process, counts the calls that need room on the disk and has one of them, or all from one on, fail
// with ENOSPC. It sees the calls of all threads and of all languages, but no system calls that bypass the C library,
// and no stores to mapped memory.
//
// Environment variables, read at each call; without the first one, nothing is counted:
//   FAULTS_FOLDER   absolute path: only calls on files in this folder count
//   FAULTS_COUNTER  file of eight bytes, shared with child processes: the number of calls so far
//   FAULTS_FIRST    number of the first call that fails, from 1
//   FAULTS_LAST     number of the last call that fails

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, #name))

static int real_open(const char *path, int flags, mode_t mode) {
  return REAL(open, int (*)(const char *, int, ...))(path, flags, mode);
}

static long *counter(void) {
  static long *mapped = NULL;
  if (!mapped) {
    int descriptor = real_open(getenv("FAULTS_COUNTER"), O_RDWR, 0);
    void *memory = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (memory == MAP_FAILED) abort();
    mapped = memory;
  }
  return mapped;
}

static int is_inside(const char *path) {
  const char *folder = getenv("FAULTS_FOLDER");
  size_t length = strlen(folder);
  return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

// Whether this call fails. `directory` is what a relative path starts from.
static int path_fails(int directory, const char *path) {
  if (!getenv("FAULTS_FOLDER")) return 0;
  char link[64], parent[PATH_MAX], absolute[2 * PATH_MAX];
  if (path[0] != '/') {
    if (directory == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, parent, sizeof parent - 1);
    if (length < 0) return 0;
    parent[length] = 0;
    snprintf(absolute, sizeof absolute, path[0] ? "%s/%s" : "%s%s", parent, path);
    path = absolute;
  }
  if (!is_inside(path)) return 0;
  long number = __atomic_add_fetch(counter(), 1, __ATOMIC_SEQ_CST);
  if (getenv("FAULTS_LOG")) dprintf(2, "WRITE %ld %s\n", number, path);
  if (number < atol(getenv("FAULTS_FIRST")) || number > atol(getenv("FAULTS_LAST"))) return 0;
  errno = ENOSPC;
  return 1;
}

static int fails(int descriptor) { return path_fails(descriptor, ""); }

#define OPEN(name)                                                                     \
  int name(const char *path, int flags, ...) {                                         \
    va_list arguments;                                                                 \
    va_start(arguments, flags);                                                        \
    mode_t mode = va_arg(arguments, int);                                              \
    va_end(arguments);                                                                 \
    if ((flags & O_CREAT) && path_fails(AT_FDCWD, path)) return -1;                    \
    return REAL(name, int (*)(const char *, int, ...))(path, flags, mode);             \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                   \
  int name(int directory, const char *path, int flags, ...) {                          \
    va_list arguments;                                                                 \
    va_start(arguments, flags);                                                        \
    mode_t mode = va_arg(arguments, int);                                              \
    va_end(arguments);                                                                 \
    if ((flags & O_CREAT) && path_fails(directory, path)) return -1;                   \
    return REAL(name, int (*)(int, const char *, int, ...))(directory, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                    \
  FILE *name(const char *path, const char *mode) {                                     \
    if (strpbrk(mode, "wa") && path_fails(AT_FDCWD, path)) return NULL;                \
    return REAL(name, FILE *(*)(const char *, const char *))(path, mode);              \
  }
FOPEN(fopen)
FOPEN(fopen64)

// A call on a descriptor: name, type of the result, result of a failure, parameters, arguments.
#define CALL(name, type, failure, parameters, arguments)                               \
  type name parameters {                                                               \
    if (fails(descriptor)) return failure;                                             \
    return REAL(name, type(*) parameters) arguments;                                   \
  }
CALL(write, ssize_t, -1, (int descriptor, const void *data, size_t size), (descriptor, data, size))
CALL(pwrite, ssize_t, -1, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at))
CALL(pwrite64, ssize_t, -1, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at))
CALL(writev, ssize_t, -1, (int descriptor, const struct iovec *data, int count), (descriptor, data, count))
CALL(pwritev, ssize_t, -1, (int descriptor, const struct iovec *data, int count, off_t at), (descriptor, data, count, at))
CALL(pwritev64, ssize_t, -1, (int descriptor, const struct iovec *data, int count, off_t at), (descriptor, data, count, at))
CALL(fsync, int, -1, (int descriptor), (descriptor))
CALL(fdatasync, int, -1, (int descriptor), (descriptor))
CALL(ftruncate, int, -1, (int descriptor, off_t size), (descriptor, size))
CALL(ftruncate64, int, -1, (int descriptor, off_t size), (descriptor, size))
CALL(fallocate, int, -1, (int descriptor, int mode, off_t at, off_t size), (descriptor, mode, at, size))
CALL(posix_fallocate, int, ENOSPC, (int descriptor, off_t at, off_t size), (descriptor, at, size))
CALL(sendfile, ssize_t, -1, (int descriptor, int from, off_t *at, size_t size), (descriptor, from, at, size))
CALL(sendfile64, ssize_t, -1, (int descriptor, int from, off_t *at, size_t size), (descriptor, from, at, size))

ssize_t copy_file_range(int from, off_t *from_at, int descriptor, off_t *at, size_t size, unsigned flags) {
  if (fails(descriptor)) return -1;
  return REAL(copy_file_range, ssize_t(*)(int, off_t *, int, off_t *, size_t, unsigned))(
      from, from_at, descriptor, at, size, flags);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
  if (fails(fileno(file))) return 0;
  return REAL(fwrite, size_t(*)(const void *, size_t, size_t, FILE *))(data, size, count, file);
}

int fflush(FILE *file) {
  if (file && fails(fileno(file))) return EOF;
  return REAL(fflush, int (*)(FILE *))(file);
}

int mkdir(const char *path, mode_t mode) {
  if (path_fails(AT_FDCWD, path)) return -1;
  return REAL(mkdir, int (*)(const char *, mode_t))(path, mode);
}

int mkdirat(int directory, const char *path, mode_t mode) {
  if (path_fails(directory, path)) return -1;
  return REAL(mkdirat, int (*)(int, const char *, mode_t))(directory, path, mode);
}

int rename(const char *from, const char *to) {
  if (path_fails(AT_FDCWD, to)) return -1;
  return REAL(rename, int (*)(const char *, const char *))(from, to);
}

int renameat(int from_directory, const char *from, int directory, const char *to) {
  if (path_fails(directory, to)) return -1;
  return REAL(renameat, int (*)(int, const char *, int, const char *))(from_directory, from, directory, to);
}

int renameat2(int from_directory, const char *from, int directory, const char *to, unsigned flags) {
  if (path_fails(directory, to)) return -1;
  return REAL(renameat2, int (*)(int, const char *, int, const char *, unsigned))(
      from_directory, from, directory, to, flags);
}

int link(const char *from, const char *to) {
  if (path_fails(AT_FDCWD, to)) return -1;
  return REAL(link, int (*)(const char *, const char *))(from, to);
}

int symlink(const char *target, const char *path) {
  if (path_fails(AT_FDCWD, path)) return -1;
  return REAL(symlink, int (*)(const char *, const char *))(target, path);
}
