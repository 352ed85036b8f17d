/*
 * The load of every benchmark in this folder: one process, one thread, epoll. It must be faster than any
 * server it measures, and it must not believe a server: it compares each payload byte with what was sent, and
 * each message with the one that is due on that connection. Its figures are worth nothing unless "ok" is true.
 *
 *     gcc -O3 -o loadgen loadgen.c && ./loadgen fanout --port 8080 --connections 1000 --window 32
 *
 * How it works
 *   A stream is a sequence of numbered messages from one publisher to one or many receivers. A fan-out is one
 *   stream (or, with --publishers, several) that every connection receives; a room is one that its members
 *   receive; an echo and a direct message go to one. Message n of a stream lies in ring[n & mask] until all
 *   receivers have it, so checking one delivery is a comparison with that slot, without parsing a number. Only
 *   what fails there is looked at closely (deliver_odd).
 *
 *   Text of a message: six characters for the stream (a letter for its kind, five hex digits), ten hex digits of
 *   the sequence number, 16 hex digits CLOCK_MONOTONIC nanoseconds, then a fixed filler; all printable. The first
 *   six tell a server where the message goes: it knows rooms and receivers by them, from "join r0002a", which
 *   it answers with "joined". --wrap puts the text into whatever else a server's protocol wants.
 *
 *   The stamp is the moment of the write or, with --rate, the moment at which the message was due: a server that
 *   stops for a second is then charged that second by all messages that had to wait for it, not by one (no
 *   coordinated omission).
 *
 *   Sockets are edge-triggered and read into one shared buffer until a read comes back short. A whole frame is
 *   judged where it lies; only a frame split over two reads goes through the byte-wise parser (feed_slowly).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_ZLIB
#include <zlib.h>
#endif

#include "channel.h"
#include "latency.h"

#define likely(x) __builtin_expect(!!(x), 1)

enum {
    NAME_SIZE = 6,                /* of a stream, at the beginning of its messages */
    SEQ_DIGITS = 16,              /* of name and sequence number together */
    HEAD_SIZE = 32,               /* number and stamp; shorter payloads carry the number, and of the stamp what fits */
    MAX_PAYLOAD = 16 << 20,
    READ_SIZE = 256 << 10,        /* stays in the L2 cache, and holds the whole window of most runs */
    WRITE_SIZE = 1 << 20,         /* how much is written at once at most */
    HANDSHAKE_SIZE = 4096,
    MAX_EVENTS = 4096,
    MAX_MISSING = 4096,           /* gaps remembered one by one, to tell a late message from a repeated one */
    STALLED_RCVBUF = 4096,
    PORTS_PER_SOURCE = 25000,     /* Linux hands out 28,232 per source address */
    SEQ_BITS = 40,                /* of the number in the payload; above them: which stream */
    RSV1 = 0x40,                  /* a compressed message, RFC 7692 */
    TIMER_NS = 100,
};
static const uint64_t SECOND = 1000000000ull;
static const uint64_t NO_PROGRESS = 5000000000ull; /* a server silent for so long has lost what is missing */
static const uint64_t LINGER = 20000000ull;        /* how long to listen for surplus messages at the end */
static const uint8_t MASK[4] = {0x37, 0xfa, 0x21, 0x3d};

/* The example of RFC 6455 1.3: a fixed key has a known answer, and needs no SHA-1 here. */
static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ==";
static const char ACCEPT[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

enum mode { FANOUT, ROOM, DIRECT, ECHO, MIXED, IDLE };
static const char *const MODES[] = {"fanout", "room", "direct", "echo", "mixed", "idle"};

enum kind { TO_ALL, TO_ROOM, TO_ONE, TO_SELF, KINDS };
static const char LETTERS[KINDS] = {'a', 'r', 'd', 'e'};
static const unsigned MIX[KINDS] = {1, 80, 19, 0}; /* messages of each kind in a hundred, mode mixed */

enum { OP_CONTINUATION = 0, OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };

struct slot {                     /* one message on its way; a cache line */
    uint8_t head[HEAD_SIZE];      /* as it must come back */
    uint64_t stamp;
    uint32_t remaining;           /* receivers that do not have it yet */
} __attribute__((aligned(64)));

struct packed {                   /* a message as it was when compressed and found right */
    uint64_t sequence;
    uint8_t *data;
    size_t size, capacity;
};

struct stream {
    struct slot *ring;
    struct packed *packed;        /* with --deflate: one for each slot */
    uint64_t mask;                /* size of the ring - 1 */
    uint64_t published;
    uint64_t incomplete;          /* messages that some receiver does not have yet */
    uint64_t tag;                 /* its number, above its sequence numbers */
    struct conn *publisher;
    uint32_t receivers;
    uint8_t kind;
    bool ready;                   /* it is in the list of those that may publish more */
};

struct unsent {                   /* what the kernel did not take */
    uint8_t *data;
    size_t start, size, capacity;
};

struct partial {                  /* a connection in the middle of a frame, or of a fragmented message */
    uint64_t frame_left;          /* payload bytes of this frame still to come */
    uint64_t offset;              /* how much of the message has come */
    uint8_t header[10];
    uint8_t header_size;          /* how much of it has come */
    uint8_t control_size;
    bool in_payload;
    bool in_message;
    bool intact;                  /* everything of this message so far was as it must be */
    uint8_t head[HEAD_SIZE];
    uint8_t control[125];
    struct unsent packed;         /* a compressed message so far */
};

enum state { NEW, CONNECTING, SECURING, UPGRADING, GREETING, JOINING, OPEN, DEAD };

struct conn {
    int fd;
    uint32_t index;
    uint32_t joins;               /* not answered yet */
    uint64_t *next;               /* the message due here, of each stream that it receives */
    uint64_t only;                /* where next points if that is a single one */
    struct stream *stream;        /* likewise */
    SSL *ssl;
    void *inflater;               /* where the server keeps its compression context */
    struct partial *partial;      /* made at the first split frame, then kept */
    struct unsent *unsent;        /* likewise, at the first short write */
    uint8_t state;
    bool split;                   /* partial holds something */
    bool stalled;
    bool packs;                   /* messages may be compressed */
    uint16_t handshake_slot;
    uint16_t handshake_size;
};

static struct {
    enum mode mode;
    struct in_addr host;
    uint16_t port;
    const char *path;
    uint32_t connections, stalled, sources, connect_concurrency;
    uint64_t window, messages;
    double seconds, warmup, rate;
    uint32_t rooms, room_size, publishers;
    bool random, tls, deflate;
    const char *wrap, *answer, *hello, *ready;
    size_t payload;
    uint8_t opcode;
    unsigned timeout;
    int server_pid;
} opt = {
    .path = "/ws", .connections = 100, .connect_concurrency = 64, .window = 1, .warmup = 0.5,
    .payload = 128, .opcode = OP_TEXT, .timeout = 60, .rooms = 1, .publishers = 1, .wrap = "@",
};

static struct conn *conns;
static struct stream *streams;
static struct { uint32_t first, count, cursors; } kinds[KINDS]; /* streams, and how many a connection receives */
static uint32_t stream_count, cursor_count;
static struct stream **ready;
static uint32_t ready_count;
static int epoll_fd, timer_fd = -1;

static uint8_t *read_buffer, *write_buffer;
static uint8_t (*handshakes)[HANDSHAKE_SIZE];
static uint64_t *handshake_began;
static uint16_t *free_handshakes;
static uint32_t free_handshake_count;
static char request[1024];
static size_t request_size;

struct text { const uint8_t *data; size_t size; };
static struct { struct text before, after; } wrap, answer;
static uint8_t *answer_rest;      /* what must come back behind the head: the filler and answer.after */
static size_t answer_size;
static uint8_t *frame;            /* the masked frame to send, the head left out */
static size_t frame_size, frame_head_at, head_size;
static uint32_t mask_word;        /* MASK as it falls on the head */
static uint8_t data_byte;         /* first byte of an unfragmented data frame of ours */

static uint32_t started, opened, open_count;
static uint64_t connect_began, connect_ended;

static uint64_t now;              /* when the read in hand came back */
static uint64_t began, measure_from = UINT64_MAX, measure_to = UINT64_MAX, last_progress;
static uint64_t published_total, publish_limit = UINT64_MAX, delivered_total, outstanding, scheduled;
static uint64_t bytes_received, messages_packed;
static struct histogram latencies, connect_latencies;
static bool publishing;
static uint64_t pings, messages_ignored;

static uint64_t lost, duplicated, reordered, corrupt, unexpected_closes, protocol_errors;
static int close_code = -1;
static struct { uint32_t conn; const struct stream *stream; uint64_t sequence; } missing[MAX_MISSING];
static uint32_t missing_count;
static char failure[200];         /* why the run was given up; empty if it was not */
static volatile sig_atomic_t timed_out;

static uint64_t random_number(void) /* xorshift64*: the same messages in every run */
{
    static uint64_t x = 88172645463325252ull;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    return x * 2685821657736338717ull >> 32;
}

static uint64_t clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* CPU time of the server, all its threads; in clock ticks, so within 10 ms. */
static double server_cpu_seconds(void)
{
    char path[64], text[1024] = "";
    unsigned long user = 0, system = 0;
    if (opt.server_pid == 0)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/stat", opt.server_pid);
    FILE *f = fopen(path, "r");
    if (f != NULL) {
        size_t n = fread(text, 1, sizeof text - 1, f);
        text[n] = 0;
        fclose(f);
    }
    char *end = strrchr(text, ')'); /* the name before it may hold anything */
    if (end != NULL)
        sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static void *allocate(size_t count, size_t size)
{
    void *p = aligned_alloc(64, (count * size + 63) / 64 * 64 + 64);
    if (p == NULL) {
        fprintf(stderr, "loadgen: out of memory\n");
        exit(2);
    }
    return memset(p, 0, count * size);
}

static void give_up(const char *why, const char *detail)
{
    if (failure[0] == 0)
        snprintf(failure, sizeof failure, "%s%s%s", why, detail[0] ? ": " : "", detail);
}

/* ---- who receives what ---- */

/* Rooms deal their places out to the connections in turn: place p is connection p % connections. So each room
 * has room_size different members, and with more places than connections a connection is in several rooms. */
static uint64_t room_places(void)
{
    return (uint64_t)opt.rooms * opt.room_size;
}

/* The stream that a connection receives at a place of its `next`; NULL if it is none. */
static struct stream *stream_at(const struct conn *c, uint32_t cursor)
{
    enum kind kind = 0;
    while (cursor >= kinds[kind].cursors)
        cursor -= kinds[kind++].cursors;
    uint64_t number = kind == TO_ALL ? cursor : c->index;
    if (kind == TO_ROOM) {
        uint64_t place = (uint64_t)cursor * opt.connections + c->index;
        if (place >= room_places())
            return NULL;
        number = place / opt.room_size;
    }
    return &streams[kinds[kind].first + number];
}

/* The inverse: which place of `next` a stream has, or -1 if the connection does not receive it. */
static int64_t cursor_of(const struct conn *c, const struct stream *s)
{
    uint64_t number = s->tag >> SEQ_BITS, at = 0;
    for (enum kind kind = 0; kind < s->kind; kind++)
        at += kinds[kind].cursors;
    if (s->kind == TO_ALL)
        return (int64_t)(at + number);
    if (s->kind != TO_ROOM)
        return number == c->index ? (int64_t)at : -1;
    uint64_t first = number * opt.room_size;
    uint64_t member = (c->index + opt.connections - first % opt.connections) % opt.connections;
    return member < opt.room_size ? (int64_t)(at + (first + member) / opt.connections) : -1;
}

static struct conn *member(const struct stream *s, uint64_t number)
{
    uint64_t stream = s->tag >> SEQ_BITS;
    switch (s->kind) {
    case TO_ROOM: return &conns[(stream * opt.room_size + number % opt.room_size) % opt.connections];
    case TO_ONE: return &conns[(stream + opt.connections / 2 + number) % opt.connections]; /* a sender */
    case TO_ALL: return &conns[(stream + number) % (opt.connections - opt.stalled)];
    default: return &conns[stream];
    }
}

static void write_name(char *to, enum kind kind, uint64_t number)
{
    snprintf(to, NAME_SIZE + 1, "%c%05x", LETTERS[kind], (unsigned)(number & 0xfffff));
}

static struct stream *named(const uint8_t *head, uint64_t number)
{
    const char *letter = memchr(LETTERS, head[0], KINDS);
    if (letter == NULL || number >> SEQ_BITS >= kinds[letter - LETTERS].count)
        return NULL;
    return &streams[kinds[letter - LETTERS].first + (number >> SEQ_BITS)];
}

/* ---- the outgoing side ---- */

static void connection_lost(struct conn *c, const char *why);

static void append(struct unsent *u, const uint8_t *data, size_t size)
{
    if (u->start + u->size + size > u->capacity) {
        if (u->size > 0)
            memmove(u->data, u->data + u->start, u->size);
        u->start = 0;
        if (u->size + size > u->capacity) {
            u->capacity = (u->size + size) * 2;
            u->data = realloc(u->data, u->capacity);
            if (u->data == NULL)
                abort();
        }
    }
    memcpy(u->data + u->start + u->size, data, size);
    u->size += size;
}

static void keep_unsent(struct conn *c, const uint8_t *data, size_t size)
{
    if (c->unsent == NULL)
        c->unsent = allocate(1, sizeof *c->unsent);
    append(c->unsent, data, size);
}

/* Returns how much the kernel took; goes on until it says EAGAIN, as an edge-triggered socket needs. */
static size_t write_some(struct conn *c, const uint8_t *data, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = channel_send(c->fd, c->ssl, data + done, size - done);
        if (n >= 0) {
            done += (size_t)n;
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            connection_lost(c, strerror(errno));
            break;
        }
    }
    return done;
}

static inline bool is_blocked(const struct conn *c)
{
    return c->unsent != NULL && c->unsent->size > 0;
}

static void write_all(struct conn *c, const uint8_t *data, size_t size)
{
    size_t done = is_blocked(c) ? 0 : write_some(c, data, size);
    if (done < size && c->state != DEAD)
        keep_unsent(c, data + done, size - done);
}

static void write_unsent(struct conn *c)
{
    struct unsent *u = c->unsent;
    size_t done = write_some(c, u->data + u->start, u->size);
    u->start += done;
    u->size -= done;
    if (u->size == 0)
        u->start = 0;
}

static size_t put_small_frame(uint8_t *to, uint8_t opcode, const uint8_t *payload, size_t size)
{
    size_t at = 0;
    to[at++] = 0x80 | opcode;
    if (size < 126) {
        to[at++] = (uint8_t)(0x80 | size);
    } else {
        to[at++] = 0x80 | 126;
        to[at++] = (uint8_t)(size >> 8);
        to[at++] = (uint8_t)size;
    }
    memcpy(to + at, MASK, 4);
    at += 4;
    for (size_t i = 0; i < size; i++)
        to[at + i] = payload[i] ^ MASK[i & 3];
    return at + size;
}

static void write_small_frame(struct conn *c, uint8_t opcode, const uint8_t *payload, size_t size)
{
    uint8_t out[8 + 125];
    write_all(c, out, put_small_frame(out, opcode, payload, size));
}

/* The eight hex digits of a 32-bit number: nibbles are spread over the bytes of a word, then all turned into
 * digits at once. An echo at full speed writes millions of these numbers. */
static void put_hex32(uint8_t *to, uint32_t value)
{
    uint64_t x = value;
    x = (x & 0x00000000ffff0000ull) << 16 | (x & 0x000000000000ffffull);
    x = (x & 0x0000ff000000ff00ull) << 8 | (x & 0x000000ff000000ffull);
    x = (x & 0x00f000f000f000f0ull) << 4 | (x & 0x000f000f000f000full);
    uint64_t is_letter = (x + 0x0606060606060606ull) >> 4 & 0x0101010101010101ull;
    x = __builtin_bswap64(x + 0x3030303030303030ull + is_letter * ('a' - '0' - 10));
    memcpy(to, &x, 8);
}

static void put_hex(uint8_t *to, uint64_t value)
{
    put_hex32(to, (uint32_t)(value >> 32));
    put_hex32(to + 8, (uint32_t)value);
}

static void encode(struct stream *s, uint8_t *to, uint64_t stamp)
{
    struct slot *slot = &s->ring[s->published & s->mask];
    uint32_t masked[HEAD_SIZE / 4], mask;
    put_hex(slot->head, s->tag | s->published);
    slot->head[0] = (uint8_t)LETTERS[s->kind]; /* was 0: a number has five digits */
    put_hex(slot->head + SEQ_DIGITS, stamp);
    slot->stamp = stamp;
    slot->remaining = s->receivers;
    memcpy(to, frame, frame_size);
    memcpy(masked, slot->head, HEAD_SIZE);
    mask = mask_word;
    for (size_t i = 0; i < HEAD_SIZE / 4; i++)
        masked[i] ^= mask;
    memcpy(to + frame_head_at, masked, head_size);
    s->published++;
    s->incomplete++;
    published_total++;
    outstanding++;
}

static uint64_t due_at(uint64_t message)
{
    return began + (uint64_t)((double)message * (1e9 / opt.rate));
}

static bool may_publish(const struct stream *s)
{
    return s->publisher->state == OPEN && s->receivers > 0;
}

static bool is_due(uint64_t stamp, uint64_t moment)
{
    if (published_total >= publish_limit || stamp >= measure_to)
        publishing = false;
    return publishing && stamp <= moment;
}

/* Closed loop: publishes up to the window. Everything goes into one write, as from a client with much to say. */
static void pump(struct stream *s)
{
    while (publishing && may_publish(s) && !is_blocked(s->publisher) && s->incomplete < opt.window) {
        uint64_t moment = clock_now();
        size_t size = 0;
        while (s->incomplete < opt.window && (size + frame_size <= WRITE_SIZE || size == 0) && is_due(0, moment)) {
            encode(s, write_buffer + size, moment);
            size += frame_size;
        }
        last_progress = moment;
        write_all(s->publisher, write_buffer, size);
    }
}

/* Those of which a message has arrived everywhere since the last time, and those that were blocked. */
static void pump_ready(void)
{
    uint32_t count = ready_count, kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct stream *s = ready[i];
        pump(s);
        s->ready = is_blocked(s->publisher) && s->incomplete < opt.window;
        if (s->ready)
            ready[kept++] = s;
    }
    ready_count = kept;
}

static struct stream *some_stream(void)
{
    uint64_t dice = random_number() % 100;
    enum kind kind = 0;
    if (opt.mode != MIXED)
        return &streams[random_number() % stream_count];
    while (dice >= MIX[kind])
        dice -= MIX[kind++];
    return &streams[kinds[kind].first + random_number() % kinds[kind].count];
}

/* Only while nothing of it is on its way: two publishers are in no order. */
static void change_publisher(struct stream *s)
{
    struct conn *c = member(s, random_number());
    if (opt.random && s->incomplete == 0 && c->state == OPEN)
        s->publisher = c;
}

/* Closed loop with random publishers: as many messages as the window in all, one in each stream. */
static void pump_random(void)
{
    for (unsigned tries = 0; tries < 64 && outstanding < opt.window && is_due(0, 0); tries++) {
        struct stream *s = some_stream();
        if (s->incomplete > 0)
            continue;
        change_publisher(s);
        if (!may_publish(s))
            continue;
        last_progress = clock_now();
        encode(s, write_buffer, last_progress);
        write_all(s->publisher, write_buffer, frame_size);
    }
}

/* Open loop: publishes what is due by now, of all streams in turn (or at random). Nothing waits for an answer; a
 * socket that takes no more does not change when the next message is due. */
static void pump_scheduled(void)
{
    struct conn *writer = NULL;
    size_t size = 0;
    uint64_t moment = clock_now(), stamp;

    while (is_due(stamp = due_at(scheduled), moment)) {
        struct stream *s = opt.random ? some_stream() : &streams[scheduled % stream_count];
        if (s->incomplete > s->mask) /* the ring is full: the message waits here, and its latency grows */
            break;
        change_publisher(s);
        if (size > 0 && (s->publisher != writer || size + frame_size > WRITE_SIZE)) {
            write_all(writer, write_buffer, size);
            size = 0;
        }
        if (may_publish(s)) {
            writer = s->publisher;
            encode(s, write_buffer + size, stamp);
            size += frame_size;
            last_progress = moment;
        }
        scheduled++;
    }
    if (size > 0)
        write_all(writer, write_buffer, size);
    if (publishing) {
        uint64_t at = due_at(scheduled);
        struct itimerspec t = {.it_value = {.tv_sec = (time_t)(at / SECOND), .tv_nsec = (long)(at % SECOND)}};
        timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
    }
}

/* ---- the incoming side: messages ---- */

static inline void release_slot(struct stream *s, struct slot *slot)
{
    if (--slot->remaining == 0) {
        s->incomplete--;
        outstanding--;
        if (!s->ready) {
            s->ready = true;
            ready[ready_count++] = s;
        }
    }
}

static inline void accept_message(struct stream *s, uint64_t *next)
{
    struct slot *slot = &s->ring[(*next)++ & s->mask];
    if (slot->stamp >= measure_from)
        record(&latencies, now - slot->stamp);
    delivered_total++;
    release_slot(s, slot);
}

static bool parse_hex(const uint8_t *from, uint64_t *value)
{
    *value = 0;
    for (int i = 0; i < SEQ_DIGITS; i++) {
        uint8_t d = from[i];
        if (d >= '0' && d <= '9')
            *value = *value << 4 | (uint64_t)(d - '0');
        else if (d >= 'a' && d <= 'f')
            *value = *value << 4 | (uint64_t)(d - 'a' + 10);
        else
            return false;
    }
    return true;
}

static void skip_message(struct conn *c, struct stream *s, uint64_t *next)
{
    if (missing_count < MAX_MISSING) {
        missing[missing_count].conn = c->index;
        missing[missing_count].stream = s;
        missing[missing_count++].sequence = *next;
    }
    lost++;
    release_slot(s, &s->ring[(*next)++ & s->mask]);
}

static bool was_missing(const struct conn *c, const struct stream *s, uint64_t sequence)
{
    for (uint32_t i = 0; i < missing_count; i++) {
        if (missing[i].conn == c->index && missing[i].stream == s && missing[i].sequence == sequence) {
            missing[i] = missing[--missing_count];
            return true;
        }
    }
    return false;
}

/* A message that is not, byte for byte, the one due on a connection with a single stream: says of which stream it
 * is and what is wrong with it, if anything is, and keeps the window moving. */
static void deliver_odd(struct conn *c, const uint8_t *head, bool intact)
{
    uint8_t digits[SEQ_DIGITS];
    uint64_t number;
    struct stream *s;
    int64_t cursor;

    last_progress = now;
    memcpy(digits, head, SEQ_DIGITS);
    digits[0] = '0';
    if (!parse_hex(digits, &number) || (s = named(head, number)) == NULL ||
        (number ^= s->tag) >= s->published || (cursor = cursor_of(c, s)) < 0) {
        corrupt++;
        return;
    }
    uint64_t *next = &c->next[cursor];
    if (!intact || (number == *next && memcmp(head, s->ring[number & s->mask].head, head_size) != 0))
        corrupt++;
    if (number >= *next) {
        while (*next < number)
            skip_message(c, s, next);
        accept_message(s, next);
    } else if (was_missing(c, s, number)) {
        lost--;
        reordered++;
        delivered_total++;
    } else {
        duplicated++;
    }
}

static inline void deliver(struct conn *c, const uint8_t *head, bool intact)
{
    struct stream *s = c->stream;
    if (likely(s != NULL && intact && c->only < s->published &&
               memcmp(head, s->ring[c->only & s->mask].head, head_size) == 0))
        accept_message(s, &c->only);
    else
        deliver_odd(c, head, intact);
}

static void connection_opened(struct conn *c);

static void join(struct conn *c);

static bool starts_with(const uint8_t *payload, uint64_t size, const char *text)
{
    return size >= strlen(text) && memcmp(payload, text, strlen(text)) == 0;
}

static bool is_joined(const uint8_t *payload, uint64_t size)
{
    static const char joined[] = "joined";
    size_t before = answer.before.size, text = sizeof joined - 1;
    return size == before + text + answer.after.size && memcmp(payload, answer.before.data, before) == 0 &&
           memcmp(payload + before, joined, text) == 0;
}

static void on_message(struct conn *c, const uint8_t *payload, uint64_t size)
{
    if (likely(c->next != NULL)) {
        const uint8_t *head = payload + answer.before.size;
        uint8_t cut_short[HEAD_SIZE] = {0};
        bool intact = size == answer_size && memcmp(payload, answer.before.data, answer.before.size) == 0 &&
                      memcmp(head + head_size, answer_rest, answer_size - answer.before.size - head_size) == 0;
        if (size < answer.before.size + HEAD_SIZE) {
            if (size > answer.before.size)
                memcpy(cut_short, head, size - answer.before.size);
            head = cut_short;
        }
        deliver(c, head, intact);
    } else if (c->state == GREETING && starts_with(payload, size, opt.ready)) {
        join(c);
    } else if (c->state == JOINING && is_joined(payload, size)) {
        if (--c->joins == 0)
            connection_opened(c);
    } else {
        messages_ignored++;
    }
}

/* ---- the incoming side: frames ---- */

static void protocol_error(struct conn *c, const char *what)
{
    protocol_errors++;
    connection_lost(c, what);
}

static void on_control(struct conn *c, uint8_t opcode, const uint8_t *payload, size_t size)
{
    if (opcode == OP_PING) {
        pings++;
        write_small_frame(c, OP_PONG, payload, size);
    } else if (opcode == OP_CLOSE) {
        if (size >= 2)
            close_code = payload[0] << 8 | payload[1];
        write_small_frame(c, OP_CLOSE, payload, size < 2 ? 0 : 2);
        connection_lost(c, "the server sent a close frame");
    } else if (opcode != OP_PONG) {
        protocol_error(c, "unknown opcode");
    }
}

static size_t header_length(uint8_t second)
{
    return (second & 127) < 126 ? 2 : (second & 127) == 126 ? 4 : 10;
}

static uint64_t payload_length(const uint8_t *header)
{
    if (header[1] < 126)
        return header[1];
    uint64_t size = 0;
    for (size_t i = 2; i < header_length(header[1]); i++)
        size = size << 8 | header[i];
    return size;
}

/* RFC 6455 5.2, 5.4, 5.5: what a server may send. */
static const char *header_fault(const struct partial *p, bool packs)
{
    uint8_t opcode = p->header[0] & 15;
    if ((p->header[0] & 0x70) && !(packs && (p->header[0] & 0x70) == RSV1 && opcode < OP_CLOSE))
        return "reserved bits";
    if ((p->header[0] & 0xc0) == RSV1)
        return "a compressed message in fragments, which loadgen cannot read";
    if (p->header[1] & 0x80)
        return "a masked frame from the server";
    if (opcode >= OP_CLOSE)
        return (p->header[0] & 0x80) && p->frame_left <= 125 ? NULL : "bad control frame";
    if (opcode > OP_BINARY)
        return "unknown opcode";
    if (p->in_message != (opcode == OP_CONTINUATION))
        return "continuation out of place";
    return NULL;
}

static void take_piece(struct conn *c, struct partial *p, const uint8_t *data, size_t size)
{
    if (p->header[0] & RSV1) {
        append(&p->packed, data, size);
        return;
    }
    size_t before = c->next != NULL ? answer.before.size : 0, head = c->next != NULL ? head_size : HEAD_SIZE;
    for (; size > 0 && p->offset < before + head; size--, data++, p->offset++) {
        if (p->offset >= before)
            p->head[p->offset - before] = *data;
        else if (*data != answer.before.data[p->offset])
            p->intact = false;
    }
    if (size > 0) {
        if (p->offset + size > answer_size || memcmp(data, answer_rest + p->offset - before - head, size) != 0)
            p->intact = false;
        p->offset += size;
    }
}

static void on_packed(struct conn *c, const uint8_t *data, size_t size);

static void finish_message(struct conn *c, struct partial *p)
{
    p->in_message = false;
    if (p->header[0] & RSV1) {
        on_packed(c, p->packed.data, p->packed.size);
        p->packed.size = 0;
    } else if (c->next != NULL) {
        deliver(c, p->head, p->intact && p->offset == answer_size);
    } else {
        on_message(c, p->head, p->offset < HEAD_SIZE ? p->offset : HEAD_SIZE); /* an answer, or its beginning */
    }
}

/* Takes the rest of a split frame (and everything up to the end of a fragmented message) from data; returns
 * where it stopped. c->split says whether it needs more. */
static const uint8_t *feed_slowly(struct conn *c, const uint8_t *data, const uint8_t *end)
{
    struct partial *p = c->partial;
    if (p == NULL)
        p = c->partial = allocate(1, sizeof *p);
    c->split = true;
    while (data < end) {
        if (!p->in_payload) {
            p->header[p->header_size++] = *data++;
            if (p->header_size < 2 || p->header_size < header_length(p->header[1]))
                continue;
            p->frame_left = payload_length(p->header);
            const char *fault = header_fault(p, c->packs);
            if (fault != NULL) {
                protocol_error(c, fault);
                return end;
            }
            p->in_payload = true;
            p->control_size = 0;
            uint8_t opcode = p->header[0] & 15;
            if (opcode == OP_TEXT || opcode == OP_BINARY) {
                p->in_message = true;
                p->offset = 0;
                p->intact = c->next == NULL || opcode == opt.opcode;
                memset(p->head, 0, sizeof p->head);
            }
        }
        bool is_control = (p->header[0] & 15) >= OP_CLOSE;
        size_t size = (size_t)(end - data) < p->frame_left ? (size_t)(end - data) : (size_t)p->frame_left;
        if (is_control) {
            memcpy(p->control + p->control_size, data, size);
            p->control_size += (uint8_t)size;
        } else {
            take_piece(c, p, data, size);
        }
        data += size;
        p->frame_left -= size;
        if (p->frame_left > 0)
            return data;
        p->in_payload = false;
        p->header_size = 0;
        if (is_control)
            on_control(c, p->header[0] & 15, p->control, p->control_size);
        else if (p->header[0] & 0x80)
            finish_message(c, p);
        if (c->state == DEAD)
            return end;
        if (!p->in_message) {
            c->split = false;
            return data;
        }
    }
    return data;
}

static void feed(struct conn *c, const uint8_t *data, size_t size)
{
    const uint8_t *end = data + size;
    while (data < end && c->state != DEAD) {
        if (!c->split && end - data >= 10 && (data[0] & ~(c->packs ? RSV1 : 0)) == data_byte && data[1] < 128) {
            size_t header = header_length(data[1]);
            uint64_t length = payload_length(data);
            if (length <= (uint64_t)(end - data) - header) {
                if (likely(!(data[0] & RSV1)))
                    on_message(c, data + header, length);
                else
                    on_packed(c, data + header, length);
                data += header + length;
                continue;
            }
        }
        data = feed_slowly(c, data, end);
    }
}

/* ---- the incoming side: compressed messages ---- */

#ifdef WITH_ZLIB
static z_stream *new_inflater(void)
{
    z_stream *z = allocate(1, sizeof *z);
    if (inflateInit2(z, -15) != Z_OK)
        abort();
    return z;
}

/* Returns the size, or a negative number if that is no compressed message, or longer than ours are. */
static int64_t inflate_message(z_stream *z, const uint8_t *data, size_t size, uint8_t *to, size_t room)
{
    static uint8_t tail[] = {0, 0, 0xff, 0xff}; /* RFC 7692 7.2.2 */
    z->next_out = to;
    z->avail_out = (uInt)room;
    for (int part = 0; part < 2; part++) {
        z->next_in = part == 0 ? (Bytef *)(uintptr_t)data : tail;
        z->avail_in = part == 0 ? (uInt)size : sizeof tail;
        int result = inflate(z, Z_SYNC_FLUSH);
        if ((result != Z_OK && result != Z_BUF_ERROR) || z->avail_in > 0)
            return -1;
    }
    return (int64_t)room - z->avail_out;
}

/* A server that forgets its context after each message sends the same bytes to everybody. They are inflated and
 * looked at once; who gets exactly the same bytes later got the same message. */
static void on_packed(struct conn *c, const uint8_t *data, size_t size)
{
    static z_stream *shared;
    static uint8_t *inflated;
    bool forgetful = c->inflater == NULL;
    struct packed *known = NULL;
    uint64_t due = c->only;

    if (inflated == NULL) {
        inflated = allocate(answer_size + 64, 1);
        shared = new_inflater();
    }
    messages_packed++;
    if (forgetful && c->stream != NULL && due < c->stream->published) {
        known = &c->stream->packed[due & c->stream->mask];
        if (known->sequence == due + 1 && known->size == size && memcmp(known->data, data, size) == 0) {
            accept_message(c->stream, &c->only);
            return;
        }
    }
    if (forgetful)
        inflateReset(shared);
    int64_t n = inflate_message(forgetful ? shared : c->inflater, data, size, inflated, answer_size + 64);
    if (n < 0) {
        protocol_error(c, "a compressed message that cannot be inflated");
        return;
    }
    uint64_t faults = corrupt;
    on_message(c, inflated, (uint64_t)n);
    if (known != NULL && c->only == due + 1 && corrupt == faults) {
        if (known->capacity < size) {
            free(known->data);
            known->data = allocate(size, 1);
            known->capacity = size;
        }
        memcpy(known->data, data, size);
        known->size = size;
        known->sequence = due + 1; /* 0: nothing yet */
    }
}

static bool agree_to_pack(struct conn *c, const char *response)
{
    if (strstr(response, "permessage-deflate") == NULL)
        return false;
    c->packs = true;
    if (strstr(response, "server_no_context_takeover") == NULL)
        c->inflater = new_inflater();
    return true;
}
#else
static void on_packed(struct conn *c, const uint8_t *data, size_t size)
{
    (void)data, (void)size;
    protocol_error(c, "a compressed message");
}

static bool agree_to_pack(struct conn *c, const char *response)
{
    (void)c, (void)response;
    return false;
}
#endif

/* ---- connections ---- */

static void connection_lost(struct conn *c, const char *why)
{
    if (c->state == DEAD)
        return;
    bool was_open = c->state == OPEN;
    c->state = DEAD;
    channel_free(c->ssl);
    c->ssl = NULL;
    close(c->fd);
    if (!was_open) {
        give_up("connection refused or broken before it was open", why);
        return;
    }
    unexpected_closes++;
    open_count--;
    for (uint32_t i = 0; c->next != NULL && i < cursor_count; i++) {
        struct stream *s = stream_at(c, i);
        if (s == NULL)
            continue;
        lost += s->published - c->next[i];
        while (c->next[i] < s->published)
            release_slot(s, &s->ring[c->next[i]++ & s->mask]);
        s->receivers--;
        if (c == s->publisher && s->receivers > 0 && !opt.random)
            give_up("a publisher was disconnected", why);
    }
}

static void connection_opened(struct conn *c)
{
    c->state = OPEN;
    opened++;
    open_count++;
    record(&connect_latencies, clock_now() - handshake_began[c->handshake_slot]);
    free_handshakes[free_handshake_count++] = c->handshake_slot;
    if (c->stalled)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
}

static void start_connecting(struct conn *c)
{
    int one = 1, small = STALLED_RCVBUF;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        give_up("socket", strerror(errno));
        return;
    }
    c->state = CONNECTING;
    c->handshake_slot = free_handshakes[--free_handshake_count];
    handshake_began[c->handshake_slot] = clock_now();
    c->handshake_size = 0;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->stalled)
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (opt.sources > 1) {
        struct sockaddr_in from = {.sin_family = AF_INET};
        from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + c->index % opt.sources);
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(c->fd, (struct sockaddr *)&from, sizeof from) != 0) {
            connection_lost(c, strerror(errno));
            return;
        }
    }
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(opt.port), .sin_addr = opt.host};
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) != 0 && errno != EINPROGRESS) {
        connection_lost(c, strerror(errno));
        return;
    }
    /* EPOLLOUT comes once now, and then only after a write that did not fit: it costs nothing to leave it on. */
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

static void open_more(void)
{
    while (started < opt.connections && free_handshake_count > 0 && failure[0] == 0)
        start_connecting(&conns[started++]);
    if (opened == opt.connections && connect_ended == 0)
        connect_ended = clock_now();
}

static void send_request(struct conn *c)
{
    c->state = UPGRADING;
    write_all(c, (const uint8_t *)request, request_size);
}

static void secure(struct conn *c)
{
    if (channel_handshake(c->ssl) == 1)
        send_request(c);
    else if (errno != EAGAIN)
        connection_lost(c, "TLS handshake");
}

static void connected(struct conn *c)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        connection_lost(c, strerror(error));
        return;
    }
#ifdef WITH_TLS
    static SSL_CTX *context;
    if (opt.tls) {
        if (context == NULL)
            context = tls_context(TLS_client_method());
        c->ssl = SSL_new(context);
        SSL_set_fd(c->ssl, c->fd);
        SSL_set_connect_state(c->ssl);
    }
#endif
    c->state = SECURING;
    secure(c);
}

/* Asks for everything that is addressed to it, in one write. */
static void join(struct conn *c)
{
    size_t size = 0;
    c->state = JOINING;
    for (uint32_t i = 0; opt.mode != IDLE && i < cursor_count; i++) {
        const struct stream *s = stream_at(c, i);
        if (s == NULL || (s->kind != TO_ROOM && s->kind != TO_ONE))
            continue;
        uint8_t text[600];
        char name[NAME_SIZE + 1];
        write_name(name, s->kind, s->tag >> SEQ_BITS);
        int n = snprintf((char *)text, sizeof text, "%.*sjoin %s%.*s", (int)wrap.before.size, wrap.before.data, name,
                         (int)wrap.after.size, wrap.after.data);
        if (size + sizeof text > WRITE_SIZE) {
            write_all(c, write_buffer, size);
            size = 0;
        }
        size += put_small_frame(write_buffer + size, OP_TEXT, text, (size_t)n);
        c->joins++;
    }
    if (size > 0)
        write_all(c, write_buffer, size);
    if (c->joins == 0 && c->state == JOINING)
        connection_opened(c);
}

static void read_response(struct conn *c)
{
    char *text = (char *)handshakes[c->handshake_slot];
    ssize_t n = channel_recv(c->fd, c->ssl, text + c->handshake_size, HANDSHAKE_SIZE - 1u - c->handshake_size);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        connection_lost(c, n == 0 ? "closed during the handshake" : strerror(errno));
        return;
    }
    c->handshake_size += (uint16_t)n;
    text[c->handshake_size] = 0;
    char *end = strstr(text, "\r\n\r\n");
    if (end == NULL) {
        if (c->handshake_size >= HANDSHAKE_SIZE - 1)
            connection_lost(c, "the upgrade response is too long");
        return;
    }
    size_t used = (size_t)(end + 4 - text), rest = c->handshake_size - used;
    end[0] = 0;
    if (strncmp(text, "HTTP/1.1 101 ", 13) != 0 || strstr(text, ACCEPT) == NULL) {
        bool upgraded = strncmp(text, "HTTP/1.1 101 ", 13) == 0;
        text[strcspn(text, "\r\n")] = 0;
        connection_lost(c, upgraded ? "wrong Sec-WebSocket-Accept" : text);
        return;
    }
    if (opt.deflate && !agree_to_pack(c, text)) {
        connection_lost(c, "the server does not compress");
        return;
    }
    if (opt.hello != NULL) {
        c->state = GREETING;
        write_small_frame(c, OP_TEXT, (const uint8_t *)opt.hello, strlen(opt.hello));
    } else {
        join(c);
    }
    /* connection_opened gave the handshake buffer back, but nobody can take it before this turn has ended */
    feed(c, (uint8_t *)text + used, rest);
}

static void read_frames(struct conn *c)
{
    while (c->state != DEAD) {
        ssize_t n = channel_recv(c->fd, c->ssl, read_buffer, READ_SIZE);
        if (n > 0) {
            now = clock_now();
            bytes_received += (uint64_t)n;
            feed(c, read_buffer, (size_t)n);
            if (n < READ_SIZE && c->ssl == NULL) /* over TLS a read ends with its record */
                return;
        } else if (n == 0) {
            connection_lost(c, "closed without a close frame");
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            connection_lost(c, strerror(errno));
        }
    }
}

static void on_event(struct conn *c, uint32_t events)
{
    if (c->state == CONNECTING)
        connected(c);
    else if (c->state == SECURING)
        secure(c);
    if (c->state == UPGRADING && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
        read_response(c);
    /* read_response may have left data in the socket, and the edge is used up: read on in any case */
    if (c->state >= GREETING && c->state <= OPEN && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) && !c->stalled)
        read_frames(c);
    if (c->state != DEAD && (events & EPOLLOUT) && is_blocked(c))
        write_unsent(c);
}

/* ---- the run ---- */

/* Markers for the two descriptors that are no connections. */
static struct conn timer_event, stdin_event;
static bool stdin_closed;

static void turn(int timeout_ms)
{
    static struct epoll_event events[MAX_EVENTS];
    int n = epoll_wait(epoll_fd, events, MAX_EVENTS, timeout_ms);
    uint64_t delivered = delivered_total;
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (c == &timer_event) {
            uint64_t expirations;
            if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
                give_up("timerfd", strerror(errno));
        } else if (c == &stdin_event) {
            char drop[256];
            stdin_closed = read(0, drop, sizeof drop) <= 0;
        } else if (c->state != DEAD) {
            on_event(c, events[i].events);
            if (opt.mode == ECHO && publishing && opt.rate == 0) /* no batches: each answers as it hears */
                pump_ready();
        }
    }
    if (delivered != delivered_total)
        last_progress = now;
    if (timed_out)
        give_up("timeout", "");
}

static void open_connections(void)
{
    connect_began = clock_now();
    open_more();
    while (connect_ended == 0 && failure[0] == 0) {
        turn(100);
        open_more();
    }
}

static void make_kind(enum kind kind, uint32_t count, uint32_t cursors)
{
    kinds[kind].first = stream_count;
    kinds[kind].count = count;
    kinds[kind].cursors = cursors;
    stream_count += count;
    cursor_count += cursors;
}

/* Before connecting: which streams there are, and who is in them. */
static void make_streams(void)
{
    bool mixed = opt.mode == MIXED;
    uint32_t per_client = (uint32_t)((room_places() + opt.connections - 1) / opt.connections);
    if (opt.mode == FANOUT || mixed)
        make_kind(TO_ALL, opt.publishers, opt.publishers);
    if (opt.mode == ROOM || mixed)
        make_kind(TO_ROOM, opt.rooms, per_client);
    if (opt.mode == DIRECT || mixed)
        make_kind(TO_ONE, opt.connections, 1);
    if (opt.mode == ECHO)
        make_kind(TO_SELF, opt.connections, 1);
    streams = allocate(stream_count, sizeof *streams);
    ready = allocate(stream_count, sizeof *ready);
    for (enum kind kind = 0; kind < KINDS; kind++) {
        for (uint32_t i = 0; i < kinds[kind].count; i++) {
            struct stream *s = &streams[kinds[kind].first + i];
            s->kind = kind;
            s->tag = (uint64_t)i << SEQ_BITS;
            s->publisher = member(s, 0);
            s->ready = true;
            ready[ready_count++] = s;
        }
    }
}

/* Once connected: room for the messages on their way, and for what each connection waits for. */
static void fill_streams(void)
{
    uint64_t size = opt.random ? 1 : opt.window, ring = 1;
    if (opt.rate > 0) { /* nothing bounds how far the server may fall behind, so keep every message */
        size = (uint64_t)(opt.rate * (opt.warmup + opt.seconds + 1)) + opt.messages + 1;
        if (stream_count > 1)
            size = size / stream_count * 4 + 64;
    }
    while (ring < size)
        ring *= 2;
    struct slot *slots = allocate(ring * stream_count, sizeof *slots);
    struct packed *packed = opt.deflate ? allocate(ring * stream_count, sizeof *packed) : NULL;
    for (uint32_t i = 0; i < stream_count; i++) {
        streams[i].ring = slots + i * ring;
        streams[i].packed = packed == NULL ? NULL : packed + i * ring;
        streams[i].mask = ring - 1;
    }
    uint64_t *cursors = cursor_count > 1 ? allocate((size_t)opt.connections * cursor_count, sizeof *cursors) : NULL;
    for (uint32_t i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        if (c->stalled)
            continue;
        c->next = cursors == NULL ? &c->only : cursors + (size_t)i * cursor_count;
        c->stream = cursors == NULL ? stream_at(c, 0) : NULL;
        for (uint32_t j = 0; j < cursor_count; j++) {
            struct stream *s = stream_at(c, j);
            if (s != NULL)
                s->receivers++;
        }
    }
}

static void publish(void)
{
    if (opt.rate > 0)
        pump_scheduled();
    else if (opt.random)
        pump_random();
    else
        pump_ready();
}

struct measurement {
    uint64_t from, to, deliveries, messages;
    double cpu, server_cpu;
};

static struct measurement snapshot(void)
{
    return (struct measurement){
        .from = clock_now(), .deliveries = delivered_total, .messages = published_total, .cpu = cpu_seconds(),
        .server_cpu = server_cpu_seconds()};
}

static struct measurement measured_since(struct measurement start)
{
    struct measurement end = snapshot();
    return (struct measurement){.from = start.from, .to = end.from,
                                .deliveries = end.deliveries - start.deliveries,
                                .messages = end.messages - start.messages, .cpu = end.cpu - start.cpu,
                                .server_cpu = end.server_cpu - start.server_cpu};
}

/* Warm up, measure, let what is under way arrive. */
static struct measurement run(void)
{
    struct measurement start = {0}, result = {0};
    bool measuring = false, measured = false;

    if (opt.rate > 0) {
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &timer_event};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
        prctl(PR_SET_TIMERSLACK, TIMER_NS);
    }
    began = last_progress = clock_now();
    measure_from = began + (uint64_t)(opt.warmup * 1e9);
    if (opt.seconds > 0)
        measure_to = measure_from + (uint64_t)(opt.seconds * 1e9);
    publishing = true;

    while (failure[0] == 0 && (publishing || outstanding > 0)) {
        uint64_t moment = clock_now();
        if (!measuring && moment >= measure_from) {
            measuring = true;
            start = snapshot();
            measure_from = start.from;
            if (opt.messages > 0)
                publish_limit = published_total + opt.messages;
        }
        if (measuring && !measured && moment >= measure_to) {
            measured = true;
            result = measured_since(start);
            if (opt.rate == 0) /* in an open loop the last message that is due ends it, however late */
                publishing = false;
        }
        if (outstanding > 0 && moment > last_progress + NO_PROGRESS)
            give_up("no message came for 5 seconds", "");
        if (open_count == 0)
            give_up("all connections are gone", "");
        publish();
        turn(100);
    }
    if (measuring && !measured)
        result = measured_since(start);
    publishing = false;
    for (uint64_t until = clock_now() + LINGER; failure[0] == 0 && clock_now() < until;)
        turn(5);
    for (uint32_t i = 0; i < opt.connections; i++) {
        for (uint32_t j = 0; j < cursor_count && conns[i].state == OPEN && conns[i].next != NULL; j++) {
            const struct stream *s = stream_at(&conns[i], j);
            lost += s == NULL ? 0 : s->published - conns[i].next[j];
        }
    }
    return result;
}

static void hold(void)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &stdin_event};
    /* a file (or /dev/null) cannot be waited for, and is at its end */
    stdin_closed = epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &e) != 0;
    while (!stdin_closed && failure[0] == 0)
        turn(100);
}

/* A server that is told of the end has nothing to complain about. */
static void say_goodbye(void)
{
    static const uint8_t normal[2] = {1000 >> 8, 1000 & 255};
    for (uint32_t i = 0; i < opt.connections; i++)
        if (conns[i].state == OPEN && !conns[i].stalled)
            write_small_frame(&conns[i], OP_CLOSE, normal, sizeof normal);
}

/* ---- report ---- */

static double connections_per_second(void)
{
    return connect_ended == 0 ? 0 : opt.connections / ((double)(connect_ended - connect_began) / 1e9);
}

static uint32_t count_stalled_closed(void)
{
    uint32_t closed = 0;
    for (uint32_t i = 0; i < opt.connections; i++) {
        struct tcp_info info;
        socklen_t size = sizeof info;
        if (conns[i].stalled && conns[i].state == OPEN &&
            getsockopt(conns[i].fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
            info.tcpi_state != TCP_ESTABLISHED)
            closed++;
    }
    return closed;
}

static bool report(struct measurement m)
{
    bool ok = failure[0] == 0 &&
              lost + duplicated + reordered + corrupt + unexpected_closes + protocol_errors == 0;
    double seconds = (double)(m.to - m.from) / 1e9;
    for (char *p = failure; *p; p++)
        if (*p == '"' || *p == '\\' || (uint8_t)*p < ' ')
            *p = '?';
    printf("{\"mode\": \"%s\", \"ok\": %s, \"failure\": %s%s%s,\n", MODES[opt.mode], ok ? "true" : "false",
           failure[0] ? "\"" : "", failure[0] ? failure : "null", failure[0] ? "\"" : "");
    printf(" \"connections\": %u, \"opened\": %u, \"connections_per_second\": %.0f, \"payload\": %zu,"
           " \"window\": %" PRIu64 ", \"rate\": %g,\n",
           opt.connections, opened, connections_per_second(), opt.payload, opt.window, opt.rate);
    printf(" \"seconds\": %.6f, \"messages\": %" PRIu64 ", \"messages_per_second\": %.1f, \"deliveries\": %" PRIu64
           ", \"deliveries_per_second\": %.1f,\n",
           seconds, m.messages, seconds > 0 ? (double)m.messages / seconds : 0, m.deliveries,
           seconds > 0 ? (double)m.deliveries / seconds : 0);
    print_histogram("latency_us", &latencies);
    print_histogram("connect_us", &connect_latencies);
    printf(" \"lost\": %" PRIu64 ", \"duplicated\": %" PRIu64 ", \"reordered\": %" PRIu64 ", \"corrupt\": %" PRIu64
           ", \"unexpected_closes\": %" PRIu64 ", \"protocol_errors\": %" PRIu64 ", \"close_code\": %d,\n",
           lost, duplicated, reordered, corrupt, unexpected_closes, protocol_errors, close_code);
    printf(" \"bytes_received\": %" PRIu64 ", \"compressed\": %" PRIu64 ", \"rooms\": %u, \"room_size\": %u,"
           " \"publishers\": %u,\n",
           bytes_received, messages_packed, opt.rooms, opt.room_size, opt.publishers);
    printf(" \"stalled\": %u, \"stalled_closed\": %u, \"pings\": %" PRIu64 ", \"ignored\": %" PRIu64
           ", \"cpu_seconds\": %.4f, \"cpu_share\": %.3f, \"server_cpu_seconds\": %.2f, \"server_cpu_share\": %.3f}\n",
           opt.stalled, count_stalled_closed(), pings, messages_ignored, m.cpu, seconds > 0 ? m.cpu / seconds : 0,
           m.server_cpu, seconds > 0 ? m.server_cpu / seconds : 0);
    return ok;
}

/* ---- start ---- */

static void usage(const char *why)
{
    fprintf(stderr,
            "loadgen: %s\n"
            "usage: loadgen fanout|room|direct|echo|mixed|idle --port PORT [options]\n"
            "  --host ADDRESS           IPv4, numeric (127.0.0.1)\n"
            "  --path PATH              (/ws)\n"
            "  --connections N          (100)\n"
            "  --connect-concurrency N  handshakes at a time (64: below the listen backlog of asyncio)\n"
            "  --sources N              spread over the loopback addresses 127.0.0.2, ... (as many as N needs)\n"
            "  --payload BYTES          16 or more (128)\n"
            "  --window W               messages in flight, per client in echo (1)\n"
            "  --rate R                 messages per second instead of a window; latency from when each was due\n"
            "  --messages M             stop after M measured messages, or\n"
            "  --seconds S              stop after S measured seconds (2)\n"
            "  --warmup S               seconds before measuring (0.5)\n"
            "  --stalled K              of the N connections, the last K never read\n"
            "  --server-pid PID         report the CPU time that this process took meanwhile\n"
            "  --text, --binary         kind of message (text)\n"
            "  --publishers P           of a fan-out (1)\n"
            "  --rooms R                (1)\n"
            "  --room-size S            members of each; a client may be in several rooms (connections / R)\n"
            "  --random                 random publishers and streams; the window is then that of all together\n"
            "  --wrap TEXT              what a message is sent in, @ for the message itself\n"
            "  --answer TEXT            what it comes back in (as --wrap)\n"
            "  --hello TEXT --ready TEXT  first message of a client, and the beginning of the one it then waits for\n"
            "  --tls                    TLS; certificates are not looked at\n"
            "  --deflate                permessage-deflate, as a browser offers it\n"
            "  --timeout S              give up after S seconds in all (60)\n",
            why);
    exit(2);
}

static double number(const char *text, double low, double high)
{
    char *end;
    double value = strtod(text, &end);
    if (*end != 0 || end == text || !(value >= low && value <= high)) {
        char why[120];
        snprintf(why, sizeof why, "%.40s is not a number from %g to %g", text, low, high);
        usage(why);
    }
    return value;
}

static void parse_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"path", 1, 0, 'P'}, {"connections", 1, 0, 'n'},
        {"connect-concurrency", 1, 0, 'c'}, {"sources", 1, 0, 'o'}, {"payload", 1, 0, 'b'},
        {"window", 1, 0, 'w'}, {"rate", 1, 0, 'r'}, {"messages", 1, 0, 'm'}, {"seconds", 1, 0, 's'},
        {"warmup", 1, 0, 'u'}, {"stalled", 1, 0, 'k'}, {"server-pid", 1, 0, 'i'}, {"text", 0, 0, 't'}, {"binary", 0, 0, 'B'},
        {"publishers", 1, 0, 'q'}, {"rooms", 1, 0, 'R'}, {"room-size", 1, 0, 'S'}, {"random", 0, 0, 'X'},
        {"wrap", 1, 0, 'W'}, {"answer", 1, 0, 'A'}, {"hello", 1, 0, 'H'}, {"ready", 1, 0, 'Y'},
        {"tls", 0, 0, 'L'}, {"deflate", 0, 0, 'D'},
        {"timeout", 1, 0, 'T'}, {0}};
    const char *host = "127.0.0.1";
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'h': host = optarg; break;
        case 'p': opt.port = (uint16_t)number(optarg, 1, 65535); break;
        case 'P': opt.path = optarg; break;
        case 'n': opt.connections = (uint32_t)number(optarg, 1, 1e6); break;
        case 'c': opt.connect_concurrency = (uint32_t)number(optarg, 1, 60000); break;
        case 'o': opt.sources = (uint32_t)number(optarg, 1, 200); break;
        case 'b': opt.payload = (size_t)number(optarg, SEQ_DIGITS, MAX_PAYLOAD); break;
        case 'w': opt.window = (uint64_t)number(optarg, 1, 1e6); break;
        case 'r': opt.rate = number(optarg, 0.01, 1e7); break;
        case 'm': opt.messages = (uint64_t)number(optarg, 1, 1e9); break;
        case 's': opt.seconds = number(optarg, 0.01, 1e6); break;
        case 'u': opt.warmup = number(optarg, 0, 1e6); break;
        case 'k': opt.stalled = (uint32_t)number(optarg, 0, 1e6); break;
        case 'i': opt.server_pid = (int)number(optarg, 1, 1e9); break;
        case 't': opt.opcode = OP_TEXT; break;
        case 'B': opt.opcode = OP_BINARY; break;
        case 'q': opt.publishers = (uint32_t)number(optarg, 1, 1e4); break;
        case 'R': opt.rooms = (uint32_t)number(optarg, 1, 1 << 20); break;
        case 'S': opt.room_size = (uint32_t)number(optarg, 1, 1e6); break;
        case 'X': opt.random = true; break;
        case 'W': opt.wrap = optarg; break;
        case 'A': opt.answer = optarg; break;
        case 'H': opt.hello = optarg; break;
        case 'Y': opt.ready = optarg; break;
        case 'L': opt.tls = true; break;
        case 'D': opt.deflate = true; break;
        case 'T': opt.timeout = (unsigned)number(optarg, 1, 1e6); break;
        default: usage("unknown option");
        }
    }
    if (optind != argc - 1)
        usage("one mode is needed");
    size_t mode = 0;
    while (mode < sizeof MODES / sizeof *MODES && strcmp(argv[optind], MODES[mode]) != 0)
        mode++;
    if (mode == sizeof MODES / sizeof *MODES)
        usage("unknown mode");
    opt.mode = (enum mode)mode;
    if (opt.port == 0)
        usage("--port is needed");
    if (strlen(opt.path) > 500 || opt.path[0] != '/')
        usage("--path starts with / and has at most 500 characters");
    if (inet_pton(AF_INET, host, &opt.host) != 1)
        usage("--host is a numeric IPv4 address");
    if (opt.stalled >= opt.connections || (opt.stalled > 0 && opt.mode != FANOUT && opt.mode != IDLE))
        usage("--stalled: of a fan-out, and at least one connection must read");
    if (opt.publishers > opt.connections - opt.stalled)
        usage("more publishers than connections that read");
    if (opt.room_size == 0)
        opt.room_size = opt.connections / opt.rooms;
    if (opt.room_size == 0 || opt.room_size > opt.connections)
        usage("a room has at least one member, and at most all");
    if ((opt.hello == NULL) != (opt.ready == NULL))
        usage("--hello and --ready belong together");
    if (opt.mode == MIXED)
        opt.random = true;
    else if (opt.mode != ROOM && opt.random)
        usage("--random: of rooms");
#ifndef WITH_TLS
    if (opt.tls)
        usage("built without OpenSSL");
#endif
#ifndef WITH_ZLIB
    if (opt.deflate)
        usage("built without zlib");
#endif
    if (opt.messages > 0 && opt.seconds > 0)
        usage("either --messages or --seconds");
    if (opt.messages == 0 && opt.seconds == 0)
        opt.seconds = 2;
    if (opt.sources == 0)
        opt.sources = (opt.connections + PORTS_PER_SOURCE - 1) / PORTS_PER_SOURCE;
    if (opt.sources > 1 && (ntohl(opt.host.s_addr) >> 24) != 127)
        usage("several source addresses are for loopback");
}

static void split_wrap(const char *text, struct text *before, struct text *after)
{
    const char *at = strchr(text, '@');
    if (at == NULL || strlen(text) > 500)
        usage("--wrap and --answer hold an @, and at most 500 characters");
    *before = (struct text){(const uint8_t *)text, (size_t)(at - text)};
    *after = (struct text){(const uint8_t *)at + 1, strlen(at + 1)};
}

static void prepare_frame(void)
{
    static const char pattern[] = "the quick brown fox jumps over the lazy dog; ";

    split_wrap(opt.wrap, &wrap.before, &wrap.after);
    split_wrap(opt.answer ? opt.answer : opt.wrap, &answer.before, &answer.after);
    /* a payload under 32 bytes carries the sequence number, and as much of the stamp as it holds */
    head_size = opt.payload < HEAD_SIZE ? opt.payload : HEAD_SIZE;
    size_t filler = opt.payload - head_size;
    answer_size = answer.before.size + opt.payload + answer.after.size;
    answer_rest = allocate(filler + answer.after.size + HEAD_SIZE, 1);
    for (size_t i = 0; i < filler; i++)
        answer_rest[i] = (uint8_t)pattern[i % (sizeof pattern - 1)];

    size_t n = wrap.before.size + opt.payload + wrap.after.size, at = 0;
    frame = allocate(n + 14, 1);
    data_byte = frame[at++] = 0x80 | opt.opcode;
    if (n < 126) {
        frame[at++] = (uint8_t)(0x80 | n);
    } else {
        int bytes = n < 65536 ? 2 : 8;
        frame[at++] = 0x80 | (bytes == 2 ? 126 : 127);
        for (int i = bytes - 1; i >= 0; i--)
            frame[at++] = (uint8_t)((uint64_t)n >> (8 * i));
    }
    memcpy(frame + at, MASK, 4);
    at += 4;
    frame_size = at + n;
    frame_head_at = at + wrap.before.size;
    memcpy(frame + at, wrap.before.data, wrap.before.size);
    memcpy(frame + frame_head_at + head_size, answer_rest, filler);
    memcpy(frame + frame_head_at + opt.payload, wrap.after.data, wrap.after.size);
    memcpy(answer_rest + filler, answer.after.data, answer.after.size);
    for (size_t i = 0; i < n; i++)
        frame[at + i] ^= MASK[i & 3];
    uint8_t turned[4];
    for (size_t i = 0; i < 4; i++)
        turned[i] = MASK[(wrap.before.size + i) & 3];
    memcpy(&mask_word, turned, 4);
}

static void prepare_buffers(void)
{
    char host[INET_ADDRSTRLEN];
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (opt.connections + 8 > limit.rlim_cur)
        usage("more connections than this process may have file descriptors");

    inet_ntop(AF_INET, &opt.host, host, sizeof host);
    request_size = (size_t)snprintf(request, sizeof request,
                                    "GET %s HTTP/1.1\r\nHost: %s:%u\r\nUpgrade: websocket\r\n"
                                    "Connection: Upgrade\r\nSec-WebSocket-Key: %s\r\n"
                                    "Sec-WebSocket-Version: 13\r\n%s\r\n",
                                    opt.path, host, opt.port, KEY,
                                    opt.deflate ? "Sec-WebSocket-Extensions: permessage-deflate; "
                                                  "client_max_window_bits\r\n" : "");
    read_buffer = allocate(READ_SIZE, 1);
    write_buffer = allocate(frame_size > WRITE_SIZE ? frame_size : WRITE_SIZE, 1);
    handshakes = allocate(opt.connect_concurrency, sizeof *handshakes);
    free_handshakes = allocate(opt.connect_concurrency, sizeof *free_handshakes);
    handshake_began = allocate(opt.connect_concurrency, sizeof *handshake_began);
    while (free_handshake_count < opt.connect_concurrency) {
        free_handshakes[free_handshake_count] = (uint16_t)free_handshake_count;
        free_handshake_count++;
    }
    conns = allocate(opt.connections, sizeof *conns);
    for (uint32_t i = 0; i < opt.connections; i++) {
        conns[i].index = i;
        conns[i].stalled = i >= opt.connections - opt.stalled;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
    timed_out = 1;
    alarm(5); /* the handler is gone now (SA_RESETHAND): the second one ends the process whatever it does */
}

int main(int argc, char **argv)
{
    struct measurement result = {0};

    parse_options(argc, argv);
    prepare_frame();
    prepare_buffers();
    if (opt.mode != IDLE)
        make_streams();
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGALRM, &action, NULL);
    alarm(opt.timeout);

    open_connections();
    if (failure[0] == 0 && opt.mode == IDLE) {
        puts("{\"ready\": true}");
        fflush(stdout);
        hold();
    } else if (failure[0] == 0) {
        fill_streams();
        result = run();
    }
    bool ok = report(result);
    fflush(stdout);
    say_goodbye();
    return ok ? 0 : 1;
}
