/* The part of zlib's stable binary interface that deflate.pyx calls, found when the process runs.
 *
 * Every system that we run on has the library (libz.so.1), but not every one has its headers; so the
 * struct and the prototypes stand here, as zlib.h publishes them, and the functions are looked up
 * once. deflateInit2_ and inflateInit2_ check the struct's size and the version themselves. */
#ifndef WSC_ZLIB_ABI_H
#define WSC_ZLIB_ABI_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

struct wsc_zstream {
    const uint8_t *next_in;
    unsigned avail_in;
    unsigned long total_in;
    uint8_t *next_out;
    unsigned avail_out;
    unsigned long total_out;
    const char *msg;
    void *state;
    void *(*zalloc)(void *, unsigned, unsigned);
    void (*zfree)(void *, void *);
    void *opaque;
    int data_type; /* of an inflater: 128 is set where it stands between two blocks */
    unsigned long adler;
    unsigned long reserved;
};

enum {
    WSC_Z_OK = 0,
    WSC_Z_STREAM_END = 1,
    WSC_Z_MEM_ERROR = -4,
    WSC_Z_BUF_ERROR = -5,
    WSC_Z_SYNC_FLUSH = 2,
    WSC_Z_DEFLATED = 8,
    WSC_Z_BETWEEN_BLOCKS = 128,
};

static struct {
    const char *(*version)(void);
    int (*deflate_init)(struct wsc_zstream *, int, int, int, int, int, const char *, int);
    int (*deflate)(struct wsc_zstream *, int);
    int (*deflate_reset)(struct wsc_zstream *);
    int (*deflate_end)(struct wsc_zstream *);
    int (*inflate_init)(struct wsc_zstream *, int, const char *, int);
    int (*inflate)(struct wsc_zstream *, int);
    int (*inflate_reset)(struct wsc_zstream *);
    int (*inflate_reset_keep)(struct wsc_zstream *);
    int (*inflate_end)(struct wsc_zstream *);
} wsc_z;

/* Finds the library; returns 1, or 0 where there is none. Never unloads it. */
static int wsc_z_load(void) {
#ifdef __APPLE__
    void *library = dlopen("libz.1.dylib", RTLD_LAZY | RTLD_LOCAL);
#else
    void *library = dlopen("libz.so.1", RTLD_LAZY | RTLD_LOCAL);
#endif
    if (library == NULL) return 0;
    wsc_z.version = (const char *(*)(void))dlsym(library, "zlibVersion");
    wsc_z.deflate_init = (int (*)(struct wsc_zstream *, int, int, int, int, int, const char *, int))dlsym(
        library, "deflateInit2_");
    wsc_z.deflate = (int (*)(struct wsc_zstream *, int))dlsym(library, "deflate");
    wsc_z.deflate_reset = (int (*)(struct wsc_zstream *))dlsym(library, "deflateReset");
    wsc_z.deflate_end = (int (*)(struct wsc_zstream *))dlsym(library, "deflateEnd");
    wsc_z.inflate_init =
        (int (*)(struct wsc_zstream *, int, const char *, int))dlsym(library, "inflateInit2_");
    wsc_z.inflate = (int (*)(struct wsc_zstream *, int))dlsym(library, "inflate");
    wsc_z.inflate_reset = (int (*)(struct wsc_zstream *))dlsym(library, "inflateReset");
    wsc_z.inflate_reset_keep = (int (*)(struct wsc_zstream *))dlsym(library, "inflateResetKeep");
    wsc_z.inflate_end = (int (*)(struct wsc_zstream *))dlsym(library, "inflateEnd");
    return wsc_z.version && wsc_z.deflate_init && wsc_z.deflate && wsc_z.deflate_reset &&
           wsc_z.deflate_end && wsc_z.inflate_init && wsc_z.inflate && wsc_z.inflate_reset &&
           wsc_z.inflate_reset_keep && wsc_z.inflate_end;
}

static inline const char *wsc_z_version(void) { return wsc_z.version(); }

/* A raw deflater (RFC 1951) without header. */
static inline int wsc_deflate_init(struct wsc_zstream *z, int level, int window, int memory) {
    return wsc_z.deflate_init(z, level, WSC_Z_DEFLATED, -window, memory, 0, wsc_z.version(),
                              (int)sizeof *z);
}

static inline int wsc_deflate(struct wsc_zstream *z) { return wsc_z.deflate(z, WSC_Z_SYNC_FLUSH); }
static inline int wsc_deflate_reset(struct wsc_zstream *z) { return wsc_z.deflate_reset(z); }
static inline int wsc_deflate_end(struct wsc_zstream *z) { return wsc_z.deflate_end(z); }

static inline int wsc_inflate_init(struct wsc_zstream *z, int window) {
    return wsc_z.inflate_init(z, -window, wsc_z.version(), (int)sizeof *z);
}

static inline int wsc_inflate(struct wsc_zstream *z) { return wsc_z.inflate(z, WSC_Z_SYNC_FLUSH); }
static inline int wsc_inflate_reset(struct wsc_zstream *z) { return wsc_z.inflate_reset(z); }
static inline int wsc_inflate_reset_keep(struct wsc_zstream *z) { return wsc_z.inflate_reset_keep(z); }
static inline int wsc_inflate_end(struct wsc_zstream *z) { return wsc_z.inflate_end(z); }

#endif
