/* The bytes of a connection, plain or over TLS, as both C programs here read and write them: like recv() and
 * send() on a socket that does not block. Without WITH_TLS (no OpenSSL headers) there are plain ones only. */
#ifndef CHANNEL_H
#define CHANNEL_H
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif

#ifdef WITH_TLS
static SSL_CTX *tls_context(const SSL_METHOD *method)
{
    SSL_CTX *context = SSL_CTX_new(method);
    if (context == NULL)
        abort();
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS);
    return context;
}

/* As recv() and send() would say it: 0 at the end of the stream, -1 with errno. */
static ssize_t tls_result(SSL *ssl, int n)
{
    if (n > 0)
        return n;
    switch (SSL_get_error(ssl, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
    case SSL_ERROR_ZERO_RETURN: return 0;
    case SSL_ERROR_SYSCALL: if (errno == 0) errno = ECONNRESET; return -1;
    default: ERR_clear_error(); errno = EPROTO; return -1;
    }
}

static inline int one_call(size_t size)
{
    return size > 1 << 30 ? 1 << 30 : (int)size;
}
#endif

/* 1 once the handshake is done, or where there is none; -1 with errno. */
static inline ssize_t channel_handshake(SSL *ssl)
{
#ifdef WITH_TLS
    if (ssl != NULL)
        return tls_result(ssl, SSL_do_handshake(ssl));
#endif
    (void)ssl;
    return 1;
}

static inline ssize_t channel_recv(int fd, SSL *ssl, void *to, size_t size)
{
#ifdef WITH_TLS
    if (ssl != NULL)
        return tls_result(ssl, SSL_read(ssl, to, one_call(size)));
#endif
    (void)ssl;
    return recv(fd, to, size, MSG_DONTWAIT);
}

static inline ssize_t channel_send(int fd, SSL *ssl, const void *from, size_t size)
{
#ifdef WITH_TLS
    if (ssl != NULL) {
        ssize_t n = tls_result(ssl, SSL_write(ssl, from, one_call(size)));
        if (n != 0)
            return n;
        errno = EPIPE;
        return -1;
    }
#endif
    (void)ssl;
    return send(fd, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static inline void channel_free(SSL *ssl)
{
#ifdef WITH_TLS
    SSL_free(ssl);
#endif
    (void)ssl;
}

#endif
