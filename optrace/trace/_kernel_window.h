/* Appends batches to a table's open segment through a part of the file that is mapped into memory (see stream.py).
 *
 * What is in a shared mapping is in the page cache, as what write(2) took, and outlives the process. A batch is copied
 * behind the end-of-stream mark that the last one left, with a mark of its own; then the mark before it becomes its
 * beginning, in one store. So the file is a whole Arrow stream at every moment, whatever follows the mark.
 */

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#endif

enum {
    BEGINNING = 8,    /* bytes of a message's beginning and of the mark: 0xffffffff, then a length */
    FRESH = 1000,     /* so many milliseconds pages are known to be there: then they may have been written to disk */
    QUICK = 20,       /* so many milliseconds between two batches, or fewer, are worth a window */
    SMALL_BATCH = 32 << 10, /* bytes of a batch at most */
};

typedef struct {
    char *memory;
    int64_t start, length; /* of the mapped part, in the file */
    int64_t made;
    pid_t owner;
} Window;

/* What Python holds of an open segment: a descriptor (-1: none), the bytes of whole messages, when one was last written
 * without a window, and the window's address (0: none), whose capsule Python keeps as long as it is here. */
typedef struct {
    int64_t descriptor, size, last, window;
} Segment;

static const Window *window_of(const Segment *segment)
{
    return (const Window *)(uintptr_t)segment->window;
}

static int64_t milliseconds(void)
{
    struct timespec now;
#if defined(CLOCK_MONOTONIC_COARSE)
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static const char WINDOW[] = "optrace window";

#if defined(__linux__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HAS_WINDOWS 1
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static const uint64_t END_MARK = 0xffffffff;

static void destroy_window(PyObject *capsule)
{
    Window *window = PyCapsule_GetPointer(capsule, WINDOW);
    if (window->owner == getpid()) /* a forked child has no such mapping */
        munmap(window->memory, (size_t)window->length);
    free(window);
}

/* Whether blocks that were allocated ahead can be written through a mapping, come what may: not where a file system
 * copies on write, compresses or is on another machine. */
static int keeps_blocks(int descriptor)
{
    struct statfs system;
    if (fstatfs(descriptor, &system) < 0)
        return 0;
    return system.f_type == 0xef53 /* ext4 */ || system.f_type == 0x58465342 /* xfs */ ||
           system.f_type == 0x01021994 /* tmpfs */;
}

/* Writes the mark and zeros behind it, several pages at a time: to map pages that are not in the cache costs five times as
 * much. The mark comes first, so that nobody finds zeros without it. */
static int write_room(int descriptor, int64_t at, int64_t length)
{
    static const char zeros[1 << 16];
    for (int64_t done = 0; done < length;) {
        struct iovec parts[16];
        int count = 0;
        int64_t planned = done;
        if (!done) {
            parts[count++] = (struct iovec){(void *)&END_MARK, sizeof END_MARK};
            planned += (int64_t)sizeof END_MARK;
        }
        for (; count < 16 && planned < length; planned += (int64_t)parts[count++].iov_len) {
            const int64_t left = length - planned;
            parts[count] = (struct iovec){(void *)zeros, left < (int64_t)sizeof zeros ? (size_t)left : sizeof zeros};
        }
        const ssize_t taken = pwritev(descriptor, parts, count, at + done);
        if (taken < (ssize_t)sizeof END_MARK)
            return -1;
        done += taken;
    }
    return 0;
}

/* Maps the next `length` bytes of a segment, which must be its last; NULL, without an error, where that cannot be. */
static Window *map_ahead(const Segment *segment, int64_t length)
{
    const int descriptor = (int)segment->descriptor;
    const int64_t page = sysconf(_SC_PAGESIZE), start = segment->size / page * page;
    length = (segment->size - start + length + page - 1) / page * page;
    if (segment->size % BEGINNING || !keeps_blocks(descriptor) ||
        fallocate(descriptor, FALLOC_FL_KEEP_SIZE, start, length) < 0 ||
        write_room(descriptor, segment->size, start + length - segment->size) < 0)
        return NULL;
    char *memory = mmap(NULL, (size_t)length, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, start);
    if (memory == MAP_FAILED)
        return NULL;
    Window *window = NULL;
    if (madvise(memory, (size_t)length, MADV_DONTFORK) == 0 &&
        madvise(memory, (size_t)length, MADV_POPULATE_WRITE) == 0) /* pages that are there cannot fail to come */
        window = malloc(sizeof *window);
    if (!window) {
        munmap(memory, (size_t)length);
        return NULL;
    }
    *window = (Window){memory, start, length, milliseconds(), getpid()};
    return window;
}
#else
static void destroy_window(PyObject *capsule) { (void)capsule; }

static Window *map_ahead(const Segment *segment, int64_t length)
{
    (void)segment, (void)length;
    return NULL;
}
static const uint64_t END_MARK = 0;
#endif

static int take_segment(PyObject *place, Segment **segment, Py_buffer *buffer)
{
    if (PyObject_GetBuffer(place, buffer, PyBUF_WRITABLE) < 0)
        return -1;
    if (buffer->len == sizeof **segment) {
        *segment = buffer->buf;
        return 0;
    }
    PyBuffer_Release(buffer);
    PyErr_SetString(PyExc_ValueError, "a segment is four 64-bit numbers");
    return -1;
}

/* map_window(place, length): the capsule of a window, whose address is in the segment then; or None. */
static PyObject *map_window(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    Py_buffer buffer;
    Segment *segment;
    (void)module;
    if (n != 2) {
        PyErr_SetString(PyExc_TypeError, "map_window(place, length)");
        return NULL;
    }
    const long long length = PyLong_AsLongLong(arguments[1]);
    if ((length == -1 && PyErr_Occurred()) || take_segment(arguments[0], &segment, &buffer) < 0)
        return NULL;
    Window *window = length > 0 && length < (1 << 30) ? map_ahead(segment, length) : NULL;
    PyObject *capsule = window ? PyCapsule_New(window, WINDOW, destroy_window) : NULL;
    segment->window = capsule ? (int64_t)(uintptr_t)window : 0;
    PyBuffer_Release(&buffer);
    if (!window)
        return Py_NewRef(Py_None);
    if (!capsule) {
#ifdef HAS_WINDOWS
        munmap(window->memory, (size_t)window->length);
#endif
        free(window);
    }
    return capsule;
}

static int has_room(const Window *window, int64_t size, int64_t length, int64_t now)
{
    return length > BEGINNING && length % BEGINNING == 0 && window->start <= size &&
           size + length + BEGINNING <= window->start + window->length && now - window->made < FRESH;
}

/* Copies a message, for which there is room, to the end of its segment; `segment->size` is the caller's business. */
static void put_message(const Window *window, const Segment *segment, const char *message, int64_t length)
{
    char *at = window->memory + (segment->size - window->start);
    memcpy(at + BEGINNING, message + BEGINNING, (size_t)(length - BEGINNING));
    memcpy(at + length, &END_MARK, BEGINNING);
    uint64_t beginning;
    memcpy(&beginning, message, BEGINNING);
    __atomic_store_n((uint64_t *)(void *)at, beginning, __ATOMIC_RELEASE); /* now it is part of the stream */
}

/* append_message(place, message): whether there was room for it in a window. */
static PyObject *append_message(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    Py_buffer buffer, message;
    Segment *segment;
    (void)module;
    if (n != 2) {
        PyErr_SetString(PyExc_TypeError, "append_message(place, message)");
        return NULL;
    }
    if (take_segment(arguments[0], &segment, &buffer) < 0)
        return NULL;
    const Window *window = window_of(segment);
    int done = -1;
    if (PyObject_GetBuffer(arguments[1], &message, PyBUF_SIMPLE) == 0) {
        done = window && has_room(window, segment->size, message.len, milliseconds());
        if (done) {
            put_message(window, segment, message.buf, message.len);
            segment->size += message.len;
        }
        PyBuffer_Release(&message);
    }
    PyBuffer_Release(&buffer);
    return done < 0 ? NULL : Py_NewRef(done ? Py_True : Py_False);
}
