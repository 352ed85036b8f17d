/* Accepting, reading and epoll, behind names for Cython.
 *
 * Results are the kernel's; a negative result is -errno, so that no caller has to read errno after
 * something else may have changed it. On systems without epoll each call fails with ENOSYS. */
#ifndef WSC_ACCEPTING_H
#define WSC_ACCEPTING_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* The address of a peer, without what the kernel pads it with. */
struct wsc_address {
    uint8_t host[16];
    uint32_t scope;  /* of a link-local address: the number of the interface */
    uint16_t port;   /* in the byte order of the machine */
    uint16_t family; /* AF_INET or AF_INET6; 0: not known */
};

static inline void wsc_keep_address(struct wsc_address *peer, const struct sockaddr_storage *from) {
    memset(peer, 0, sizeof *peer);
    if (from->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)from;
        memcpy(peer->host, &in->sin_addr, sizeof in->sin_addr);
        peer->port = ntohs(in->sin_port);
        peer->family = AF_INET;
    } else if (from->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)from;
        memcpy(peer->host, &in->sin6_addr, sizeof in->sin6_addr);
        peer->port = ntohs(in->sin6_port);
        peer->scope = in->sin6_scope_id;
        peer->family = AF_INET6;
    }
}

/* The same of a connection that was accepted by others. */
static inline void wsc_ask_address(int fd, struct wsc_address *peer) {
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    memset(peer, 0, sizeof *peer);
    if (getpeername(fd, (struct sockaddr *)&from, &size) == 0) wsc_keep_address(peer, &from);
}

/* Writes the host as text, as inet_ntop(3) does, into INET6_ADDRSTRLEN bytes; 0: it is not known. */
static inline int wsc_host_text(const struct wsc_address *peer, char *out) {
    if (peer->family == AF_INET) { /* inet_ntop(3) goes through printf(3) */
        for (int i = 0; i < 4; i++) {
            uint8_t part = peer->host[i];
            if (part >= 100) *out++ = (char)('0' + part / 100);
            if (part >= 10) *out++ = (char)('0' + part / 10 % 10);
            *out++ = (char)('0' + part % 10);
            *out++ = i < 3 ? '.' : 0;
        }
        return 1;
    }
    return peer->family && inet_ntop(peer->family, peer->host, out, INET6_ADDRSTRLEN) != NULL;
}

static inline int wsc_is_ipv6(const struct wsc_address *peer) { return peer->family == AF_INET6; }

/* One read that never blocks; 0: the peer has ended its stream. */
static inline ssize_t wsc_receive(int fd, void *into, size_t size) {
    ssize_t n;
    do n = recv(fd, into, size, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n >= 0) return n;
    return errno == EWOULDBLOCK ? -EAGAIN : -errno;
}

static inline int wsc_end_output(int fd) { return shutdown(fd, SHUT_WR) < 0 ? -errno : 0; }

static inline void wsc_close(int fd) { (void)close(fd); }

#ifdef __linux__
#include <sys/epoll.h>

#define WSC_READ EPOLLIN
#define WSC_WRITE EPOLLOUT
#define WSC_BROKEN (EPOLLERR | EPOLLHUP)

typedef struct epoll_event wsc_event;

static inline int wsc_poll_open(void) {
    int fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Changes what is watched for at a descriptor, from `before` to `events`; 0 is not at all. */
static inline int wsc_poll_watch(int poll, int fd, uint32_t before, uint32_t events) {
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.events = events;
    event.data.fd = fd;
    int what = !before ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    return epoll_ctl(poll, what, fd, &event) < 0 ? -errno : 0;
}

/* The events of this moment; does not wait. */
static inline int wsc_poll_take(int poll, wsc_event *events, int most) {
    int n;
    do n = epoll_wait(poll, events, most, 0);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static inline int wsc_event_descriptor(const wsc_event *event) { return event->data.fd; }
static inline uint32_t wsc_event_kinds(const wsc_event *event) { return event->events; }

static inline int wsc_accept(int listening, struct wsc_address *peer) {
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    int fd;
    from.ss_family = 0;
    do fd = accept4(listening, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    wsc_keep_address(peer, &from);
    return fd;
}

#else

#define WSC_READ 1
#define WSC_WRITE 2
#define WSC_BROKEN 4

typedef struct {
    int fd;
} wsc_event;

static inline int wsc_poll_open(void) { return -ENOSYS; }
static inline int wsc_poll_watch(int poll, int fd, uint32_t before, uint32_t events) {
    (void)poll, (void)fd, (void)before, (void)events;
    return -ENOSYS;
}
static inline int wsc_poll_take(int poll, wsc_event *events, int most) {
    (void)poll, (void)events, (void)most;
    return -ENOSYS;
}
static inline int wsc_event_descriptor(const wsc_event *event) { return event->fd; }
static inline uint32_t wsc_event_kinds(const wsc_event *event) { return (void)event, 0; }
static inline int wsc_accept(int listening, struct wsc_address *peer) {
    (void)listening, (void)peer;
    return -ENOSYS;
}

#endif

#endif
