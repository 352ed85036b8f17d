/* A crowd of clients for what loadgen does not measure: it reads frames on many connections, and
 *
 *     crowd ack PORT CONNECTIONS                        acknowledges each HubMessage that asks for it
 *     crowd count PORT CONNECTIONS WINDOW SECONDS OFFER counts broadcasts, compressed or not
 *
 * `ack` prints "ready" once all are connected as /ws?id=N, and runs until its input ends. `count`
 * offers the extension OFFER ("" for none), has the server publish by sending "next" on the first
 * connection, WINDOW times at first and again whenever everybody has got one more, and ends after
 * SECONDS. Both print what they counted as JSON. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WINDOWS = 1024 }; /* more than any window */
enum { BUFFER = 1 << 16, ID_MAX = 256, EVENTS = 1024 };

struct connection {
    int fd;
    size_t kept; /* bytes of an unfinished frame */
    unsigned long long messages;
    uint8_t *rest;
};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int connected(int port, int number, const char *offer) {
    char request[512], response[1024];
    size_t got = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0) fail("socket");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int size = snprintf(request, sizeof request,
                        "GET /ws?id=%d HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n%s%s%s\r\n",
                        number, *offer ? "Sec-WebSocket-Extensions: " : "", offer,
                        *offer ? "\r\n" : "");
    if (send(fd, request, (size_t)size, 0) != size) fail("send");
    while (got < 4 || memcmp(response + got - 4, "\r\n\r\n", 4) != 0) {
        if (got == sizeof response || recv(fd, response + got, 1, 0) != 1) fail("handshake");
        got++;
    }
    if (memcmp(response, "HTTP/1.1 101", 12) != 0) fail("upgrade");
    return fd;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void send_next(int fd) {
    static const uint8_t next[] = {0x81, 0x84, 0, 0, 0, 0, 'n', 'e', 'x', 't'};
    if (send(fd, next, sizeof next, 0) != sizeof next) fail("send");
}

/* Writes an acknowledgement behind `out`; returns its size. */
static size_t acknowledgement(uint8_t *out, const uint8_t *id, size_t id_size) {
    static const char before[] = "{\"type\":\"ack\",\"message_id\":\"", after[] = "\"}";
    size_t size = sizeof before - 1 + id_size + sizeof after - 1, head = 6;
    out[0] = 0x81;
    if (size < 126) {
        out[1] = (uint8_t)(0x80 | size);
    } else {
        out[1] = 0x80 | 126;
        out[2] = (uint8_t)(size >> 8);
        out[3] = (uint8_t)size;
        head = 8;
    }
    memset(out + head - 4, 0, 4); /* the mask */
    memcpy(out + head, before, sizeof before - 1);
    memcpy(out + head + sizeof before - 1, id, id_size);
    memcpy(out + head + size - (sizeof after - 1), after, sizeof after - 1);
    return head + size;
}

int main(int count, char **arguments) {
    static uint8_t in[2 * BUFFER], out[2 * BUFFER];
    static int reached[WINDOWS]; /* by how many, of the last messages */
    unsigned long long messages = 0, acknowledged = 0, compressed = 0, bytes = 0;
    int counting = count == 7 && strcmp(arguments[1], "count") == 0;
    if (!counting && !(count == 4 && strcmp(arguments[1], "ack") == 0)) return 2;
    int port = atoi(arguments[2]), connections = atoi(arguments[3]);
    int window = counting ? atoi(arguments[4]) : 0;
    struct connection *all = calloc((size_t)connections, sizeof *all);
    int poll = epoll_create1(0);
    if (all == NULL || poll < 0 || window >= WINDOWS) fail("set-up");
    for (int i = 0; i < connections; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        all[i].fd = connected(port, i, counting ? arguments[6] : "");
        all[i].rest = malloc(BUFFER);
        if (all[i].rest == NULL || epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &event) < 0)
            fail("epoll_ctl");
    }
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
    if (!counting && epoll_ctl(poll, EPOLL_CTL_ADD, STDIN_FILENO, &input) < 0) fail("epoll_ctl");
    if (!counting) {
        puts("ready");
        fflush(stdout);
    }
    double start = now(), end = counting ? start + atof(arguments[5]) : 0;
    for (int i = 0; i < window; i++) send_next(all[0].fd);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poll, events, EVENTS, counting ? 1000 : -1);
        if (ready < 0 && errno != EINTR) fail("epoll_wait");
        if (counting && now() >= end) {
            double taken = now() - start;
            printf("{\"deliveries\": %.0f, \"messages\": %llu, \"compressed\": %llu, "
                   "\"bytes\": %llu}\n",
                   (double)messages / taken, messages, compressed, bytes);
            return 0;
        }
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == NULL) {
                printf("{\"messages\": %llu, \"acknowledged\": %llu}\n", messages, acknowledged);
                return 0;
            }
            memcpy(in, c->rest, c->kept);
            ssize_t got = recv(c->fd, in + c->kept, BUFFER, 0);
            if (got <= 0) fail("a connection ended");
            size_t size = c->kept + (size_t)got, at = 0, answer = 0;
            while (size - at >= 2) {
                size_t head = 2, payload = in[at + 1];
                if (payload == 126) {
                    if (size - at < 4) break;
                    payload = (size_t)in[at + 2] << 8 | in[at + 3];
                    head = 4;
                } else if (payload == 127) {
                    errno = EMSGSIZE;
                    fail("frame");
                }
                if (size - at < head + payload) break;
                const uint8_t *text = in + at + head;
                int opcode = in[at] & 15;
                if (opcode != 1 && opcode != 2) { /* pings need no answer for so short a time */
                    at += head + payload;
                    continue;
                }
                messages++;
                if (counting) {
                    int *here = &reached[c->messages++ % WINDOWS];
                    compressed += in[at] >> 6 & 1;
                    bytes += head + payload;
                    if (++*here == connections) {
                        *here = 0;
                        send_next(all[0].fd);
                    }
                } else if (payload > 7 && memcmp(text, "{\"id\":\"", 7) == 0 &&
                           memmem(text, payload, "\"require_ack\":true", 18) != NULL) {
                    const uint8_t *id = text + 7, *quote = memchr(id, '"', payload - 7);
                    if (quote == NULL || quote - id > ID_MAX) fail("id");
                    answer += acknowledgement(out + answer, id, (size_t)(quote - id));
                    acknowledged++;
                }
                at += head + payload;
            }
            c->kept = size - at;
            memcpy(c->rest, in + at, c->kept);
            if (answer && send(c->fd, out, answer, 0) != (ssize_t)answer) fail("send");
        }
    }
}
