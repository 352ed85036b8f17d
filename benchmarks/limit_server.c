/*
 * The C limit: what the kernel allows a WebSocket server with one thread and one send() per client and turn.
 * Every rate of this folder is shown as a share of this one. So it does what a good C programmer would do and
 * nothing else: no rooms, no ids, no queues but for what a socket did not take, no limits but for one that
 * keeps it alive. It does not cheat: the upgrade, the unmasking and the framing are real, every client gets
 * every byte in order.
 *
 *     gcc -O3 -o limit_server limit_server.c && ./limit_server fanout|room|direct|echo|mixed PORT [CERT KEY]
 *
 * One turn of the loop: read every readable client; unmask and frame each message into the buffer of the room it
 * goes to (everybody is a room, and so is each receiver of direct messages); then, for each room with something in
 * its buffer, one send() per member. An echo goes back as soon as its client has been read.
 *
 * Sockets are edge-triggered, with EPOLLOUT always on: it comes only after a send that did not fit.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"

enum {
    READ_SIZE = 256 << 10,
    MAX_FRAME = 32 << 20,
    MAX_REQUEST = 8 << 10,
    MAX_UNSENT = 64 << 20, /* a client further behind is dropped, or stalled clients would eat the machine */
    MAX_EVENTS = 4096,
    BACKLOG = 4096,
    NAME_SIZE = 6,         /* a letter for the kind of stream, five hex digits */
    OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10,
};

struct buffer {
    uint8_t *data;
    size_t size, capacity;
};

struct client {
    int fd;
    SSL *ssl;
    bool secured, upgraded, dead;
    struct buffer partial;   /* the beginning of a request or frame whose rest has not come yet */
    struct buffer unsent;    /* what a send() did not take */
};

struct room {
    struct client **members; /* dense: a broadcast walks it from end to end */
    uint32_t count, capacity;
    struct buffer out;       /* frames of this turn */
};

static char mode;              /* the letter of the only kind of message there is, or m */
static struct room everybody, *rooms, *receivers; /* the latter two by number */
static struct room **waiting;  /* those with something in out */
static uint32_t waiting_count, waiting_capacity;
static int epoll_fd;
static uint8_t read_buffer[READ_SIZE];
static struct buffer echoes;    /* frames of this read */
#ifdef WITH_TLS
static SSL_CTX *tls;            /* NULL: plain */
#endif

static uint8_t *reserve(struct buffer *b, size_t more)
{
    if (b->size + more > b->capacity) {
        b->capacity = (b->size + more) * 2;
        b->data = realloc(b->data, b->capacity);
        if (b->data == NULL)
            abort();
    }
    return b->data + b->size;
}

static void append(struct buffer *b, const uint8_t *data, size_t size)
{
    memcpy(reserve(b, size), data, size);
    b->size += size;
}

static void *grown(void *array, uint32_t count, uint32_t *capacity)
{
    if (count < *capacity)
        return array;
    *capacity = *capacity ? *capacity * 2 : 1024;
    array = realloc(array, *capacity * sizeof(void *));
    if (array == NULL)
        abort();
    return array;
}

/* ---- the upgrade ---- */

static void sha1(const uint8_t *text, size_t size, uint8_t digest[20])
{
    uint8_t block[128] = {0}; /* 60 bytes of text, so two blocks with the padding */
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};

    memcpy(block, text, size);
    block[size] = 0x80;
    block[126] = (uint8_t)(size * 8 >> 8);
    block[127] = (uint8_t)(size * 8);
    for (int start = 0; start < 128; start += 64) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            const uint8_t *p = block + start + 4 * i;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) {
            uint32_t x = w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16];
            w[i] = x << 1 | x >> 31;
        }
        for (int i = 0; i < 80; i++) {
            uint32_t f, k;
            if (i < 20)
                f = (b & c) | (~b & d), k = 0x5a827999;
            else if (i < 40)
                f = b ^ c ^ d, k = 0x6ed9eba1;
            else if (i < 60)
                f = (b & c) | (b & d) | (c & d), k = 0x8f1bbcdc;
            else
                f = b ^ c ^ d, k = 0xca62c1d6;
            uint32_t x = (a << 5 | a >> 27) + f + e + k + w[i];
            e = d, d = c, c = b << 30 | b >> 2, b = a, a = x;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++)
        digest[i] = (uint8_t)(h[i / 4] >> (24 - i % 4 * 8));
}

/* The answer to a key of 24 characters, RFC 6455 4.2.2. */
static void accept_key(const char *key, char answer[29])
{
    static const char magic[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t text[60], digest[21] = {0};

    memcpy(text, key, 24);
    memcpy(text + 24, magic, 36);
    sha1(text, 60, digest);
    for (int i = 0, o = 0; i < 21; i += 3) {
        uint32_t x = (uint32_t)digest[i] << 16 | (uint32_t)digest[i + 1] << 8 | digest[i + 2];
        for (int shift = 18; shift >= 0; shift -= 6)
            answer[o++] = letters[x >> shift & 63];
    }
    answer[27] = '='; /* 20 bytes are 27 letters and one of padding */
    answer[28] = 0;
}

/* ---- clients ---- */

/* A client that is gone leaves its rooms when one of them is next walked. Its struct is never freed, since events of
 * this turn may still name it: a few bytes, and a benchmark's server lives for one run. */
static void drop(struct client *c)
{
    if (c->dead)
        return;
    c->dead = true;
    channel_free(c->ssl);
    c->ssl = NULL;
    close(c->fd);
    free(c->unsent.data);
    c->unsent = (struct buffer){0};
}

static void enter(struct room *room, struct client *c)
{
    room->members = grown(room->members, room->count, &room->capacity);
    room->members[room->count++] = c;
}

/* The room of a name such as r0002a, made if need be. */
static struct room *room_of(const char name[NAME_SIZE])
{
    struct room **table = name[0] == 'd' ? &receivers : &rooms;
    uint32_t number = 0;
    if (name[0] == 'a')
        return &everybody;
    for (int i = 1; i < NAME_SIZE; i++)
        number = number << 4 | (uint32_t)(name[i] <= '9' ? name[i] - '0' : name[i] - 'a' + 10);
    if (number >> 20)
        return NULL;
    if (*table == NULL) { /* as many as there are names, so that none ever moves; untouched pages cost nothing */
        *table = calloc(1 << 20, sizeof **table);
        if (*table == NULL)
            abort();
    }
    return &(*table)[number];
}

/* One send(); what the kernel does not take waits for EPOLLOUT. */
static void send_to(struct client *c, const uint8_t *data, size_t size)
{
    ssize_t n = 0;
    if (c->unsent.size == 0) {
        n = channel_send(c->fd, c->ssl, data, size);
        if (n == (ssize_t)size)
            return;
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            drop(c);
            return;
        }
        if (n < 0)
            n = 0;
    }
    append(&c->unsent, data + n, size - (size_t)n);
    if (c->unsent.size > MAX_UNSENT)
        drop(c);
}

static void send_unsent(struct client *c)
{
    while (c->unsent.size > 0) {
        ssize_t n = channel_send(c->fd, c->ssl, c->unsent.data, c->unsent.size);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN)
                drop(c);
            return;
        }
        c->unsent.size -= (size_t)n;
        memmove(c->unsent.data, c->unsent.data + n, c->unsent.size);
    }
}

/* A short first write makes no later edge by itself: only an EAGAIN does. */
static void send_and_arm(struct client *c, const uint8_t *data, size_t size)
{
    bool was_clear = c->unsent.size == 0;
    send_to(c, data, size);
    if (was_clear && !c->dead && c->unsent.size > 0)
        send_unsent(c);
}

/* ---- frames ---- */

static void put_frame(struct buffer *b, uint8_t opcode, const uint8_t *payload, size_t size, const uint8_t mask[4])
{
    uint8_t *to = reserve(b, size + 10);
    size_t at = 0;

    to[at++] = 0x80 | opcode;
    if (size < 126) {
        to[at++] = (uint8_t)size;
    } else {
        int bytes = size < 65536 ? 2 : 8;
        to[at++] = bytes == 2 ? 126 : 127;
        for (int i = bytes - 1; i >= 0; i--)
            to[at++] = (uint8_t)((uint64_t)size >> (8 * i));
    }
    uint64_t wide;
    uint32_t narrow;
    memcpy(&narrow, mask, 4);
    wide = (uint64_t)narrow << 32 | narrow;
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t x;
        memcpy(&x, payload + i, 8);
        x ^= wide;
        memcpy(to + at + i, &x, 8);
    }
    for (; i < size; i++)
        to[at + i] = payload[i] ^ mask[i & 3];
    b->size += at + size;
}

static void unmask(char *to, const uint8_t *payload, size_t from, size_t size, const uint8_t mask[4])
{
    for (size_t i = 0; i < size; i++)
        to[i] = (char)(payload[from + i] ^ mask[(from + i) & 3]);
}

static void on_message(struct client *c, uint8_t opcode, const uint8_t *payload, size_t size, const uint8_t mask[4])
{
    static const char join[] = "join ";
    char start[sizeof join - 1 + NAME_SIZE];
    struct buffer reply = {0};

    if (mode == 'e') {
        put_frame(&echoes, opcode, payload, size, mask);
        return;
    }
    if (size < sizeof start) {
        drop(c);
        return;
    }
    unmask(start, payload, 0, mode == 'a' ? 0 : sizeof start, mask);
    bool is_join = mode != 'a' && memcmp(start, join, sizeof join - 1) == 0;
    struct room *room = mode == 'a' ? &everybody : room_of(is_join ? start + sizeof join - 1 : start);
    if (room == NULL) {
        drop(c);
    } else if (is_join) {
        enter(room, c);
        put_frame(&reply, OP_TEXT, (const uint8_t *)"joined", 6, (const uint8_t[4]){0});
        send_and_arm(c, reply.data, reply.size);
        free(reply.data);
    } else {
        if (room->out.size == 0) {
            waiting = grown(waiting, waiting_count, &waiting_capacity);
            waiting[waiting_count++] = room;
        }
        put_frame(&room->out, opcode, payload, size, mask);
    }
}

static void send_waiting(void)
{
    while (waiting_count > 0) {
        struct room *room = waiting[--waiting_count];
        for (uint32_t i = room->count; i-- > 0;) { /* backwards: one who is gone is replaced by the last */
            if (room->members[i]->dead)
                room->members[i] = room->members[--room->count];
            else
                send_and_arm(room->members[i], room->out.data, room->out.size);
        }
        room->out.size = 0;
    }
}

static void on_frame(struct client *c, uint8_t opcode, const uint8_t *payload, size_t size, const uint8_t mask[4])
{
    struct buffer reply = {0};

    if (opcode == OP_TEXT || opcode == OP_BINARY) {
        on_message(c, opcode, payload, size, mask);
    } else if (opcode == OP_CLOSE || opcode == OP_PING) {
        put_frame(&reply, opcode == OP_PING ? OP_PONG : OP_CLOSE, payload, size, mask);
        send_and_arm(c, reply.data, reply.size);
        free(reply.data);
        if (opcode == OP_CLOSE)
            drop(c);
    } else if (opcode != OP_PONG) {
        drop(c); /* nobody here sends fragments */
    }
}

/* Takes one frame; returns its size, 0 if it is not complete, and then sets *needed to what it takes. */
static size_t take_frame(struct client *c, const uint8_t *data, size_t size, size_t *needed)
{
    *needed = 14;
    if (size < 2)
        return 0;
    if (!(data[1] & 0x80) || !(data[0] & 0x80)) {
        drop(c);
        return 0;
    }
    uint64_t length = data[1] & 127;
    size_t header = 2;
    if (length >= 126) {
        header = length == 126 ? 4 : 10;
        if (size < header)
            return 0;
        length = 0;
        for (size_t i = 2; i < header; i++)
            length = length << 8 | data[i];
        if (length > MAX_FRAME) {
            drop(c);
            return 0;
        }
    }
    size_t whole = header + 4 + (size_t)length;
    if (size < whole) {
        *needed = whole;
        return 0;
    }
    on_frame(c, data[0] & 15, data + header + 4, (size_t)length, data + header);
    return whole;
}

/* Takes the upgrade request; returns its size, 0 if it is not complete. */
static size_t take_request(struct client *c, const uint8_t *data, size_t size, size_t *needed)
{
    char text[MAX_REQUEST + 1], answer[29], response[256];
    const uint8_t *end = memmem(data, size, "\r\n\r\n", 4);

    *needed = MAX_REQUEST;
    if (end == NULL) {
        if (size >= MAX_REQUEST)
            drop(c);
        return 0;
    }
    size_t used = (size_t)(end - data) + 4;
    if (used > MAX_REQUEST) {
        drop(c);
        return 0;
    }
    memcpy(text, data, used);
    text[used] = 0;
    const char *key = strcasestr(text, "\r\nSec-WebSocket-Key:");
    if (key != NULL)
        key += strlen("\r\nSec-WebSocket-Key:") + strspn(key + strlen("\r\nSec-WebSocket-Key:"), " ");
    if (key == NULL || strcspn(key, "\r\n ") != 24) {
        static const char bad[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        send_and_arm(c, (const uint8_t *)bad, sizeof bad - 1);
        drop(c);
        return 0;
    }
    accept_key(key, answer);
    int n = snprintf(response, sizeof response,
                     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: %s\r\n\r\n", answer);
    send_and_arm(c, (uint8_t *)response, (size_t)n);
    if (!c->dead) {
        c->upgraded = true;
        enter(&everybody, c);
    }
    return used;
}

/* Takes all that is complete; returns how much that was. */
static size_t take(struct client *c, const uint8_t *data, size_t size, size_t *needed)
{
    size_t done = 0, n;
    *needed = 0;
    while (!c->dead && done < size) {
        n = c->upgraded ? take_frame(c, data + done, size - done, needed)
                        : take_request(c, data + done, size - done, needed);
        if (n == 0)
            break;
        done += n;
    }
    return done;
}

static bool secure(struct client *c)
{
    if (!c->secured && !c->dead) {
        c->secured = channel_handshake(c->ssl) == 1;
        if (!c->secured && errno != EAGAIN)
            drop(c);
    }
    return c->secured;
}

static void read_client(struct client *c)
{
    struct buffer *p = &c->partial;
    size_t needed, done;

    while (secure(c) && !c->dead) {
        /* with a partial frame, read behind it; else into the buffer that all share */
        uint8_t *to = p->size > 0 ? p->data + p->size : read_buffer;
        size_t room = p->size > 0 ? p->capacity - p->size : READ_SIZE;
        ssize_t n = channel_recv(c->fd, c->ssl, to, room);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            drop(c);
            return;
        }
        if (p->size > 0) {
            p->size += (size_t)n;
            done = take(c, p->data, p->size, &needed);
            p->size -= done;
            memmove(p->data, p->data + done, p->size);
        } else {
            done = take(c, read_buffer, (size_t)n, &needed);
            if (done < (size_t)n)
                append(p, read_buffer + done, (size_t)n - done);
        }
        if (p->size > 0 && needed > p->size)
            reserve(p, needed - p->size);
        if (echoes.size > 0 && !c->dead)
            send_and_arm(c, echoes.data, echoes.size);
        echoes.size = 0;
        if ((size_t)n < room && c->ssl == NULL) /* over TLS a read ends with its record */
            return;
    }
}

static void accept_clients(int listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct client *c = calloc(1, sizeof *c);
        if (c == NULL)
            abort();
        c->fd = fd;
#ifdef WITH_TLS
        if (tls != NULL) {
            c->ssl = SSL_new(tls);
            SSL_set_fd(c->ssl, fd);
            SSL_set_accept_state(c->ssl);
        }
#endif
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static int listen_on(uint16_t port)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, BACKLOG) != 0) {
        perror("limit_server");
        exit(1);
    }
    return listener;
}

int main(int argc, char **argv)
{
    static struct epoll_event events[MAX_EVENTS];
    struct rlimit limit;

    static const char *const modes[] = {"fanout", "room", "direct", "echo", "mixed"};
    for (size_t i = 0; i < sizeof modes / sizeof *modes && argc > 1; i++)
        if (strcmp(argv[1], modes[i]) == 0)
            mode = "ardem"[i];
    if (mode == 0 || (argc != 3 && argc != 5)) {
        fprintf(stderr, "usage: limit_server fanout|room|direct|echo|mixed PORT [CERT KEY]\n");
        return 2;
    }
#ifdef WITH_TLS
    if (argc == 5) {
        tls = tls_context(TLS_server_method());
        if (SSL_CTX_use_certificate_chain_file(tls, argv[3]) != 1 ||
            SSL_CTX_use_PrivateKey_file(tls, argv[4], SSL_FILETYPE_PEM) != 1) {
            fprintf(stderr, "limit_server: %s, %s: no certificate and key\n", argv[3], argv[4]);
            return 2;
        }
    }
#else
    if (argc == 5) {
        fprintf(stderr, "limit_server: built without OpenSSL\n");
        return 2;
    }
#endif
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on((uint16_t)atoi(argv[2]));
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);

    for (;;) {
        int n = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (c == NULL) {
                accept_clients(listener);
                continue;
            }
            if (!c->dead && (events[i].events & EPOLLOUT) && c->unsent.size > 0)
                send_unsent(c);
            if (!c->dead && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
                read_client(c);
        }
        send_waiting();
    }
}
