/* The few kernel calls of the send path and two clocks, behind names for Cython.
 *
 * Every function may be called without the GIL. Results are the kernel's; a negative result is
 * -errno, so that no caller has to read errno after something else may have changed it. */
#ifndef WSC_NET_H
#define WSC_NET_H

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#ifdef __linux__
#include <linux/tcp.h>
#else
#include <netinet/tcp.h>
#endif

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* elsewhere run() ignores SIGPIPE for the whole process */
#endif

#ifndef CLOCK_MONOTONIC_COARSE
#define CLOCK_MONOTONIC_COARSE CLOCK_MONOTONIC
#endif

#define WSC_AGAIN (-EAGAIN)

/* Asks for memory that is about to be written to. */
static inline void wsc_prefetch(const void *address) {
#ifdef __GNUC__
    __builtin_prefetch(address, 1);
#else
    (void)address;
#endif
}

/* One send that never blocks and never raises a signal. ENOBUFS and ENOMEM mean "not now", as
 * EAGAIN does: the connection is sound. */
static inline ssize_t wsc_send(int fd, const struct iovec *iov, int count) {
    ssize_t n;
    do {
        if (count == 1) {
            n = send(fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        } else {
            struct msghdr msg;
            memset(&msg, 0, sizeof msg);
            msg.msg_iov = (struct iovec *)iov;
            msg.msg_iovlen = (size_t)count;
            n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
    } while (n < 0 && errno == EINTR);
    if (n >= 0) return n;
    if (errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM) return WSC_AGAIN;
    return -errno;
}

/* A layer between the bytes of a connection and the kernel: TLS (tls.h). Its `send` is as `wsc_send`,
 * but may keep some of what it has taken, and takes nothing more until the kernel has that. */
typedef struct wsc_layer {
    ssize_t (*send)(struct wsc_layer *layer, int fd, const struct iovec *iov, int count);
    size_t kept; /* bytes */
} wsc_layer;

static inline ssize_t wsc_send_through(wsc_layer *layer, int fd, const struct iovec *iov,
                                       int count) {
    return layer == NULL ? wsc_send(fd, iov, count) : layer->send(layer, fd, iov, count);
}

/* Bytes that it keeps. */
static inline size_t wsc_kept(const wsc_layer *layer) {
    return layer == NULL ? 0 : layer->kept;
}

static inline double wsc_clock(clockid_t id) {
    struct timespec ts;
    clock_gettime(id, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* Monotonic seconds, exact; and at the kernel's tick (1-4 ms) but several times cheaper. */
static inline double wsc_now(void) { return wsc_clock(CLOCK_MONOTONIC); }
static inline double wsc_coarse_now(void) { return wsc_clock(CLOCK_MONOTONIC_COARSE); }

#ifdef __linux__
static inline int wsc_tcp_info(int fd, struct tcp_info *info) {
    socklen_t size = sizeof *info;
    memset(info, 0, sizeof *info);
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size);
}
#endif

/* How far a connection has come according to the kernel: seconds since data last arrived, and how
 * many bytes the peer has acknowledged in all. Returns 0, or -errno where it cannot be told. */
static inline int wsc_progress(int fd, double *since_data, unsigned long long *acked) {
#ifdef __linux__
    struct tcp_info info;
    if (wsc_tcp_info(fd, &info) < 0) return -errno;
    *since_data = (double)info.tcpi_last_data_recv * 1e-3;
    *acked = (unsigned long long)info.tcpi_bytes_acked;
    return 0;
#else
    (void)fd;
    (void)since_data;
    (void)acked;
    return -ENOSYS;
#endif
}

/* Whether the connection is over: the peer has reset it. */
static inline int wsc_was_reset(int fd) {
#ifdef __linux__
    struct tcp_info info;
    return wsc_tcp_info(fd, &info) == 0 && info.tcpi_state == 7 /* TCP_CLOSE */;
#else
    (void)fd;
    return 0;
#endif
}

/* Whether the peer has ended its stream, or reset the connection, though not all of it was read. */
static inline int wsc_peer_left(int fd) {
#ifdef POLLRDHUP
    struct pollfd look = {fd, POLLRDHUP, 0}; /* POLLHUP and POLLERR are always told */
    return poll(&look, 1, 0) > 0;
#else
    (void)fd;
    return 0;
#endif
}

/* Whether the peer has ended its stream and all that it sent has been read. */
static inline int wsc_peer_ended(int fd) {
#ifdef __linux__
    struct tcp_info info;
    int unread = 0;
    if (wsc_tcp_info(fd, &info) < 0) return 0;
    if (info.tcpi_state == 1 /* TCP_ESTABLISHED */) return 0;
    return ioctl(fd, FIONREAD, &unread) == 0 && unread == 0;
#else
    (void)fd;
    return 0;
#endif
}

#endif
