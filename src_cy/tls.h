/* TLS of one connection by the OpenSSL that Python's `ssl` module has loaded, without Python.
 *
 * The functions are looked up when the process runs, in the library that `_ssl` is linked to, and
 * stand here as OpenSSL 1.1.1 and 3 publish them: the build needs neither headers nor library, and
 * `ssl.SSLContext` configures the very objects that are used here.
 *
 * Once the handshake is done, OpenSSL reads from memory and writes to memory (the BIO below), and
 * never waits for the socket. So no write is ever half done for OpenSSL: what it has encrypted goes
 * to the kernel in one call, and what the kernel does not take is kept, at most one piece.
 *
 * Everything here but `wsc_tls_load`, `wsc_tls_new` and `wsc_tls_free` may run without the GIL, by
 * one thread at a time for each connection.
 *
 * Ownership: a `wsc_tls` is its TLSStream's, as is the Python object that owns the SSL. The SSL owns
 * the BIO, which points to the `wsc_tls` until `wsc_tls_free`. */
#ifndef WSC_TLS_H
#define WSC_TLS_H

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "net.h"

/* One record holds at most so much (RFC 8446 section 5.1). */
#define WSC_TLS_RECORD 16384
/* Records that are encrypted for one call of the kernel, once it has taken a first one. */
#define WSC_TLS_PIECE 3
/* Room for a record with all that may come with it: a peer may want it cut into pieces of 512 bytes
 * (RFC 6066 section 4), each of which grows by up to 90. */
#define WSC_TLS_ROOM (WSC_TLS_RECORD + 4096)
/* Bytes that one call encrypts at most, or one record more. */
#define WSC_TLS_MOST 262144
/* Room for what OpenSSL answers by itself to one read: alerts and KeyUpdates. */
#define WSC_TLS_ANSWERS 4096
/* Records without data that one read may bring: KeyUpdates, each of which costs 10 us. */
#define WSC_TLS_SILENT 64

enum {
    WSC_TLS_OPEN = 0,
    WSC_TLS_ENDED = 1,  /* the peer has said that it sends no more (close_notify) */
    WSC_TLS_BROKEN = 2, /* what came is no TLS of this connection */
};

enum { /* openssl/bio.h, openssl/ssl.h */
    WSC_BIO_READ = 1,
    WSC_BIO_RETRY = 8,
    WSC_BIO_BITS = 15,
    WSC_BIO_FLUSH = 11,
    WSC_BIO_SOURCE_SINK = 0x400,
    WSC_SSL_CTRL_MODE = 33,
    WSC_SSL_MODES = 1 | 2 | 4 | 16, /* partial writes, moving buffer, auto retry, released buffers */
    WSC_SSL_WANT_READ = 2,
    WSC_SSL_ZERO_RETURN = 6,
};
#define WSC_SSL_NO_RENEGOTIATION ((uint64_t)1 << 30)

static struct {
    int (*read)(void *, void *, int);
    int (*write)(void *, const void *, int);
    int (*shutdown)(void *);
    int (*pending)(const void *);
    int (*get_error)(const void *, int);
    long (*ctrl)(void *, int, long, void *);
    uint64_t (*set_options)(void *, uint64_t);
    int (*set_fd)(void *, int);
    void (*set_bio)(void *, void *, void *);
    unsigned long (*peek_error)(void);
    void (*clear_error)(void);
    const char *(*reason)(unsigned long);
    void *(*bio_new)(const void *);
    void *(*bio_data)(void *);
    void (*bio_set_data)(void *, void *);
    void (*bio_set_init)(void *, int);
    void (*bio_set_flags)(void *, int);
    void (*bio_clear_flags)(void *, int);
    void *method; /* of the BIO; NULL: OpenSSL cannot be called */
} wsc_ssl;

typedef struct {
    wsc_layer layer; /* first: `wsc_tls_send` is given this */
    void *ssl;
    void *bio;
    const uint8_t *in; /* received and not read by OpenSSL yet: during a call alone */
    size_t in_size;
    unsigned silent; /* reads of OpenSSL's in the call, beyond two for each record of data */
    uint8_t *out;    /* where OpenSSL writes to: during a call alone */
    size_t out_size;
    size_t out_room;
    uint8_t *rest; /* of `layer.kept` bytes from `rest_at` on */
    size_t rest_at;
    size_t answers; /* bytes of these that OpenSSL has written by itself since all was sent */
    unsigned long error; /* OpenSSL's number of what has broken it; 0: none */
} wsc_tls;

static int wsc_bio_write(void *bio, const char *data, int size) {
    wsc_tls *tls = wsc_ssl.bio_data(bio);
    wsc_ssl.bio_clear_flags(bio, WSC_BIO_BITS);
    if (tls == NULL || tls->out == NULL || size <= 0) return -1;
    if ((size_t)size > tls->out_room - tls->out_size) return -1;
    memcpy(tls->out + tls->out_size, data, (size_t)size);
    tls->out_size += (size_t)size;
    return size;
}

static int wsc_bio_read(void *bio, char *into, int size) {
    wsc_tls *tls = wsc_ssl.bio_data(bio);
    wsc_ssl.bio_clear_flags(bio, WSC_BIO_BITS);
    if (tls == NULL || size <= 0) return -1;
    if (tls->in_size == 0) {
        wsc_ssl.bio_set_flags(bio, WSC_BIO_READ | WSC_BIO_RETRY);
        return -1;
    }
    if (++tls->silent > 2 * WSC_TLS_SILENT) return -1;
    if ((size_t)size > tls->in_size) size = (int)tls->in_size;
    memcpy(into, tls->in, (size_t)size);
    tls->in += size;
    tls->in_size -= (size_t)size;
    return size;
}

/* The SSL is freed, which may come before `wsc_tls_free`. */
static int wsc_bio_destroy(void *bio) {
    wsc_tls *tls = wsc_ssl.bio_data(bio);
    if (tls != NULL) tls->bio = NULL;
    return 1;
}

static long wsc_bio_ctrl(void *bio, int what, long number, void *pointer) {
    (void)bio, (void)number, (void)pointer;
    return what == WSC_BIO_FLUSH;
}

/* Finds OpenSSL through the module that is linked to it; returns 1, or 0 where it cannot be called.
 * Never unloads it. */
static int wsc_tls_load(const char *module) {
    void *(*method_new)(int, const char *);
    int (*method_set)(void *, void *);
    void *method;
    void *library = dlopen(module, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
    if (library == NULL) return 0;
#define WSC_FIND(into, name) \
    if ((*(void **)(&into) = dlsym(library, name)) == NULL) return 0
    WSC_FIND(wsc_ssl.read, "SSL_read");
    WSC_FIND(wsc_ssl.write, "SSL_write");
    WSC_FIND(wsc_ssl.shutdown, "SSL_shutdown");
    WSC_FIND(wsc_ssl.pending, "SSL_pending");
    WSC_FIND(wsc_ssl.get_error, "SSL_get_error");
    WSC_FIND(wsc_ssl.ctrl, "SSL_ctrl");
    WSC_FIND(wsc_ssl.set_options, "SSL_set_options");
    WSC_FIND(wsc_ssl.set_fd, "SSL_set_fd");
    WSC_FIND(wsc_ssl.set_bio, "SSL_set_bio");
    WSC_FIND(wsc_ssl.peek_error, "ERR_peek_error");
    WSC_FIND(wsc_ssl.clear_error, "ERR_clear_error");
    WSC_FIND(wsc_ssl.reason, "ERR_reason_error_string");
    WSC_FIND(wsc_ssl.bio_new, "BIO_new");
    WSC_FIND(wsc_ssl.bio_data, "BIO_get_data");
    WSC_FIND(wsc_ssl.bio_set_data, "BIO_set_data");
    WSC_FIND(wsc_ssl.bio_set_init, "BIO_set_init");
    WSC_FIND(wsc_ssl.bio_set_flags, "BIO_set_flags");
    WSC_FIND(wsc_ssl.bio_clear_flags, "BIO_clear_flags");
    WSC_FIND(method_new, "BIO_meth_new");
    if ((method = method_new(WSC_BIO_SOURCE_SINK, "wsc_fast")) == NULL) return 0;
    WSC_FIND(method_set, "BIO_meth_set_read");
    if (!method_set(method, (void *)wsc_bio_read)) return 0;
    WSC_FIND(method_set, "BIO_meth_set_write");
    if (!method_set(method, (void *)wsc_bio_write)) return 0;
    WSC_FIND(method_set, "BIO_meth_set_ctrl");
    if (!method_set(method, (void *)wsc_bio_ctrl)) return 0;
    WSC_FIND(method_set, "BIO_meth_set_destroy");
    if (!method_set(method, (void *)wsc_bio_destroy)) return 0;
#undef WSC_FIND
    wsc_ssl.method = method;
    return 1;
}

/* How CPython's object of a TLS connection begins, from 3.11 to 3.15. */
typedef struct {
    PyObject_HEAD
    PyObject *socket;
    void *ssl;
    PyObject *context;
} wsc_python_ssl;

/* The SSL of Python's object; NULL where the object does not look as known. */
static inline void *wsc_ssl_of(PyObject *object, PyObject *context) {
    wsc_python_ssl *known = (wsc_python_ssl *)object;
    if (Py_TYPE(object)->tp_basicsize < (Py_ssize_t)sizeof *known) return NULL;
    return known->context == context && known->socket == NULL ? known->ssl : NULL;
}

/* Keeps bytes that the kernel did not take; returns 0, or -ENOMEM. */
static inline int wsc_tls_keep(wsc_tls *tls, const uint8_t *bytes, size_t size) {
    uint8_t *room;
    if (size == 0) return 0;
    if ((room = malloc(tls->layer.kept + size)) == NULL) return -ENOMEM;
    if (tls->layer.kept) memcpy(room, tls->rest + tls->rest_at, tls->layer.kept);
    memcpy(room + tls->layer.kept, bytes, size);
    free(tls->rest);
    tls->rest = room;
    tls->rest_at = 0;
    tls->layer.kept += size;
    return 0;
}

/* Offers the kernel what is kept; returns 0, or -errno. */
static inline int wsc_tls_push(wsc_tls *tls, int fd) {
    struct iovec iov;
    ssize_t n;
    if (tls->layer.kept == 0) return 0;
    iov.iov_base = tls->rest + tls->rest_at;
    iov.iov_len = tls->layer.kept;
    n = wsc_send(fd, &iov, 1);
    if (n == WSC_AGAIN) return 0;
    if (n < 0) return (int)n;
    tls->rest_at += (size_t)n;
    tls->layer.kept -= (size_t)n;
    if (tls->layer.kept == 0) {
        free(tls->rest);
        tls->rest = NULL;
        tls->rest_at = tls->answers = 0;
    }
    return 0;
}

/* Gives the kernel what OpenSSL has written; returns 0, or -errno. */
static inline int wsc_tls_hand_over(wsc_tls *tls, int fd) {
    struct iovec iov = {tls->out, tls->out_size};
    size_t sent = 0;
    ssize_t n;
    if (tls->layer.kept == 0 && tls->out_size) {
        n = wsc_send(fd, &iov, 1);
        if (n < 0 && n != WSC_AGAIN) return (int)n;
        if (n > 0) sent = (size_t)n;
    }
    return wsc_tls_keep(tls, tls->out + sent, tls->out_size - sent);
}

/* As `wsc_send` (net.h): what it returns is encrypted, and with the kernel or kept. */
static ssize_t wsc_tls_send(wsc_layer *layer, int fd, const struct iovec *iov, int count) {
    wsc_tls *tls = (wsc_tls *)layer;
    uint8_t out[WSC_TLS_PIECE * WSC_TLS_ROOM];
    uint8_t record[WSC_TLS_RECORD];
    ssize_t done = 0;
    size_t at = 0; /* in the first of the pieces that are left */
    int records = 1, failed = wsc_tls_push(tls, fd);
    if (failed) return failed;
    if (tls->layer.kept) return WSC_AGAIN;
    tls->out = out;
    tls->out_room = sizeof out;
    while (count > 0 && done < WSC_TLS_MOST && tls->layer.kept == 0) {
        tls->out_size = 0;
        for (int i = 0; i < records && count > 0; i++) {
            const uint8_t *data = (const uint8_t *)iov->iov_base + at;
            size_t size = iov->iov_len - at;
            if (size >= WSC_TLS_RECORD || count == 1) {
                if (size > WSC_TLS_RECORD) size = WSC_TLS_RECORD;
                at += size;
                if (at == iov->iov_len) iov += 1, count -= 1, at = 0;
            } else { /* as many pieces as a record has room for */
                data = record;
                size = 0;
                while (count > 0 && size < WSC_TLS_RECORD) {
                    size_t some = iov->iov_len - at;
                    if (some > WSC_TLS_RECORD - size) some = WSC_TLS_RECORD - size;
                    memcpy(record + size, (const uint8_t *)iov->iov_base + at, some);
                    size += some;
                    at += some;
                    if (at == iov->iov_len) iov += 1, count -= 1, at = 0;
                }
            }
            while (size > 0) {
                int n = wsc_ssl.write(tls->ssl, data, (int)size);
                if (n <= 0) {
                    wsc_ssl.clear_error();
                    failed = -EPIPE;
                    goto end;
                }
                data += n;
                size -= (size_t)n;
                done += n;
            }
        }
        failed = wsc_tls_hand_over(tls, fd);
        if (failed) break;
        records = WSC_TLS_PIECE;
    }
end:
    tls->out = NULL;
    return failed ? failed : done;
}

/* Decrypts all that was received, into `into`, which has room for it and for one record more.
 * Returns the bytes, or -errno of the answers; `*state` is set to one of WSC_TLS_.. */
static inline ssize_t wsc_tls_read(wsc_tls *tls, int fd, const uint8_t *received, size_t size,
                                   uint8_t *into, size_t room, int *state) {
    uint8_t answers[WSC_TLS_ANSWERS];
    size_t total = 0;
    int failed, error;
    *state = WSC_TLS_OPEN;
    tls->in = received;
    tls->in_size = size;
    tls->silent = 0;
    tls->out = answers;
    tls->out_size = 0;
    tls->out_room = sizeof answers;
    if (wsc_ssl.peek_error()) wsc_ssl.clear_error(); /* of somebody else's */
    while (total < room && (tls->in_size || wsc_ssl.pending(tls->ssl) > 0)) {
        int n = wsc_ssl.read(tls->ssl, into + total, (int)(room - total));
        if (n > 0) {
            total += (size_t)n;
            tls->silent -= tls->silent < 2 ? tls->silent : 2;
            continue;
        }
        error = wsc_ssl.get_error(tls->ssl, n);
        if (error == WSC_SSL_WANT_READ) break;
        *state = error == WSC_SSL_ZERO_RETURN ? WSC_TLS_ENDED : WSC_TLS_BROKEN;
        tls->error = wsc_ssl.peek_error();
        wsc_ssl.clear_error();
        break;
    }
    if (tls->out_size) {
        tls->answers += tls->out_size;
        failed = wsc_tls_hand_over(tls, fd);
        if (tls->layer.kept == 0) tls->answers = 0;
        /* A peer that asks and does not read what is answered. */
        if (tls->answers > WSC_TLS_ANSWERS) *state = WSC_TLS_BROKEN;
    } else {
        failed = 0;
    }
    tls->in = NULL;
    tls->out = NULL;
    tls->in_size = 0;
    return failed ? failed : (ssize_t)total;
}

/* Says that nothing more is sent (close_notify); returns 0, or -errno. */
static inline int wsc_tls_say_goodbye(wsc_tls *tls, int fd) {
    uint8_t out[WSC_TLS_ANSWERS];
    int failed;
    tls->out = out;
    tls->out_size = 0;
    tls->out_room = sizeof out;
    if (wsc_ssl.shutdown(tls->ssl) < 0) wsc_ssl.clear_error();
    failed = wsc_tls_hand_over(tls, fd);
    tls->out = NULL;
    return failed;
}

/* The TLS of a connection whose handshake is by the descriptor; NULL: there is no memory. */
static inline wsc_tls *wsc_tls_new(void *ssl, int fd) {
    wsc_tls *tls = calloc(1, sizeof *tls);
    if (tls == NULL) return NULL;
    tls->layer.send = wsc_tls_send;
    tls->ssl = ssl;
    (void)wsc_ssl.ctrl(ssl, WSC_SSL_CTRL_MODE, WSC_SSL_MODES, NULL);
    (void)wsc_ssl.set_options(ssl, WSC_SSL_NO_RENEGOTIATION);
    if (wsc_ssl.set_fd(ssl, fd)) return tls;
    wsc_ssl.clear_error();
    free(tls);
    return NULL;
}

/* The handshake is done: from here on OpenSSL has nothing to do with the descriptor. Returns 1, or 0
 * where there is no memory. */
static inline int wsc_tls_detach(wsc_tls *tls) {
    tls->bio = wsc_ssl.bio_new(wsc_ssl.method);
    if (tls->bio == NULL) {
        wsc_ssl.clear_error();
        return 0;
    }
    wsc_ssl.bio_set_data(tls->bio, tls);
    wsc_ssl.bio_set_init(tls->bio, 1);
    wsc_ssl.set_bio(tls->ssl, tls->bio, tls->bio);
    return 1;
}

/* OpenSSL's words for what has broken it; NULL where it has none. */
static inline const char *wsc_tls_reason(const wsc_tls *tls) {
    return tls->error ? wsc_ssl.reason(tls->error) : NULL;
}

/* The SSL may live on, where others hold Python's object of it, and reads and writes nothing more. */
static inline void wsc_tls_free(wsc_tls *tls) {
    if (tls->bio != NULL) wsc_ssl.bio_set_data(tls->bio, NULL);
    free(tls->rest);
    free(tls);
}

#endif
