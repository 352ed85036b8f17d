/*
 * The load of every benchmark in this folder: one process, one thread, epoll. It must be faster than any
 * server it measures, and it must not believe a server: it compares each payload byte with what was sent, and
 * each message with the one that is due on that connection. Its figures are worth nothing unless "ok" is true.
 *
 *     gcc -O3 -o loadgen loadgen.c && ./loadgen fanout --port 8080 --connections 1000 --window 32
 *
 * How it works
 *   A stream is a sequence of numbered messages from one publisher to one or many receivers. A fan-out is one
 *   stream that every connection receives; an echo is one stream per connection, received by itself. Message n
 *   of a stream lies in ring[n & mask] until all receivers have it, so checking one delivery is a comparison
 *   with that slot, without parsing a number. Only what fails there is looked at closely (deliver_odd).
 *
 *   Payload: 16 hex digits stream and sequence number, 16 hex digits CLOCK_MONOTONIC nanoseconds, then a fixed
 *   filler. All printable, so that it may travel as a text message. The stamp is the moment of the write or,
 *   with --rate, the moment at which the message was due: a server that stops for a second is then charged
 *   that second by all messages that had to wait for it, not by one (no coordinated omission).
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

#define likely(x) __builtin_expect(!!(x), 1)

enum {
    SEQ_DIGITS = 16,
    HEAD_SIZE = 32,               /* sequence number and stamp; shorter payloads carry the number only */
    MAX_PAYLOAD = 16 << 20,
    READ_SIZE = 256 << 10,        /* stays in the L2 cache, and holds the whole window of most runs */
    WRITE_SIZE = 1 << 20,         /* how much is written at once at most */
    HANDSHAKE_SIZE = 4096,
    MAX_EVENTS = 4096,
    MAX_MISSING = 4096,           /* gaps remembered one by one, to tell a late message from a repeated one */
    STALLED_RCVBUF = 4096,
    PORTS_PER_SOURCE = 25000,     /* Linux hands out 28,232 per source address */
    SEQ_BITS = 40,                /* of the number in the payload; above them: which stream */
    TIMER_NS = 100,
};
static const uint64_t SECOND = 1000000000ull;
static const uint64_t NO_PROGRESS = 5000000000ull; /* a server silent for so long has lost what is missing */
static const uint64_t LINGER = 20000000ull;        /* how long to listen for surplus messages at the end */
static const uint8_t MASK[4] = {0x37, 0xfa, 0x21, 0x3d};

/* The example of RFC 6455 1.3: a fixed key has a known answer, and needs no SHA-1 here. */
static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ==";
static const char ACCEPT[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

enum mode { FANOUT, ROOM, ECHO, IDLE, STALLED, RATE };
static const char *const MODES[] = {"fanout", "room", "echo", "idle", "stalled", "rate"};

enum { OP_CONTINUATION = 0, OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };

struct slot {                     /* one message on its way; a cache line */
    uint8_t head[HEAD_SIZE];      /* as it must come back */
    uint64_t stamp;
    uint32_t remaining;           /* receivers that do not have it yet */
} __attribute__((aligned(64)));

struct stream {
    struct slot *ring;
    uint64_t mask;                /* size of the ring - 1 */
    uint64_t published;
    uint64_t incomplete;          /* messages that some receiver does not have yet */
    uint64_t tag;                 /* upper bits of its sequence numbers */
    struct conn *publisher;
    uint32_t receivers;
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
};

struct unsent {                   /* what the kernel did not take */
    uint8_t *data;
    size_t start, size, capacity;
};

enum state { NEW, CONNECTING, UPGRADING, JOINING, OPEN, DEAD };

struct conn {
    int fd;
    uint32_t index;
    uint64_t next;                /* the message due here */
    struct stream *stream;
    struct partial *partial;      /* made at the first split frame, then kept */
    struct unsent *unsent;        /* likewise, at the first short write */
    uint8_t state;
    bool split;                   /* partial holds something */
    bool stalled;
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
    size_t payload;
    uint8_t opcode;
    unsigned timeout;
    int server_pid;
} opt = {
    .path = "/ws", .connections = 100, .connect_concurrency = 64, .window = 1, .warmup = 0.5,
    .payload = 128, .opcode = OP_TEXT, .timeout = 60,
};

static struct conn *conns;
static struct stream *streams;
static uint32_t stream_count;
static int epoll_fd, timer_fd = -1;

static uint8_t *read_buffer, *write_buffer;
static uint8_t (*handshakes)[HANDSHAKE_SIZE];
static uint16_t *free_handshakes;
static uint32_t free_handshake_count;
static char request[1024];
static size_t request_size;

static uint8_t *filler;           /* payload from HEAD_SIZE on, as it must come back */
static uint8_t *frame;            /* the masked frame to send, the head left out */
static size_t frame_size, frame_header_size, head_size;
static uint8_t data_byte;         /* first byte of an unfragmented data frame of ours */

static uint32_t started, opened, open_count;
static uint64_t connect_began, connect_ended;

static uint64_t now;              /* when the read in hand came back */
static uint64_t began, measure_from = UINT64_MAX, measure_to = UINT64_MAX, last_progress;
static uint64_t published_total, publish_limit = UINT64_MAX, delivered_total, outstanding;
static bool publishing;
static uint64_t pings, messages_ignored;

static uint64_t lost, duplicated, reordered, corrupt, unexpected_closes, protocol_errors;
static int close_code = -1;
static struct { uint32_t conn; uint64_t sequence; } missing[MAX_MISSING];
static uint32_t missing_count;
static char failure[200];         /* why the run was given up; empty if it was not */
static volatile sig_atomic_t timed_out;

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

/* ---- latencies: a log-linear histogram, 128 steps per power of two, so within 0.8 % ---- */

enum { STEP_BITS = 8, STEPS = 1 << STEP_BITS };
static uint64_t histogram[(64 - STEP_BITS + 1) * STEPS];
static uint64_t latency_count, latency_max;
static double latency_sum;

static inline void record_latency(uint64_t ns)
{
    unsigned shift = ns < STEPS ? 0 : 63u - (unsigned)__builtin_clzll(ns) - STEP_BITS + 1;
    histogram[shift * STEPS + (ns >> shift)]++;
    latency_count++;
    latency_sum += (double)ns;
    if (ns > latency_max)
        latency_max = ns;
}

static double percentile_us(double p)
{
    uint64_t wanted = (uint64_t)((double)latency_count * p / 100.0 + 0.999999);
    uint64_t seen = 0;
    for (size_t i = 0; i < sizeof histogram / sizeof *histogram; i++) {
        seen += histogram[i];
        if (seen >= wanted && seen > 0) {
            uint64_t value = (uint64_t)(i % STEPS) << (i / STEPS); /* inverse of record_latency */
            return (double)(value < latency_max ? value : latency_max) / 1e3;
        }
    }
    return 0;
}

/* ---- the outgoing side ---- */

static void connection_lost(struct conn *c, const char *why);

static void keep_unsent(struct conn *c, const uint8_t *data, size_t size)
{
    struct unsent *u = c->unsent;
    if (u == NULL)
        u = c->unsent = allocate(1, sizeof *u);
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

/* Returns how much the kernel took; goes on until it says EAGAIN, as an edge-triggered socket needs. */
static size_t write_some(struct conn *c, const uint8_t *data, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = send(c->fd, data + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
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

static void write_small_frame(struct conn *c, uint8_t opcode, const uint8_t *payload, size_t size)
{
    uint8_t out[6 + 125] = {(uint8_t)(0x80 | opcode), (uint8_t)(0x80 | size), MASK[0], MASK[1], MASK[2], MASK[3]};
    for (size_t i = 0; i < size; i++)
        out[6 + i] = payload[i] ^ MASK[i & 3];
    write_all(c, out, 6 + size);
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
    put_hex(slot->head + SEQ_DIGITS, stamp);
    slot->stamp = stamp;
    slot->remaining = s->receivers;
    memcpy(to, frame, frame_size);
    memcpy(masked, slot->head, HEAD_SIZE);
    memcpy(&mask, MASK, 4);
    for (size_t i = 0; i < HEAD_SIZE / 4; i++)
        masked[i] ^= mask;
    memcpy(to + frame_header_size, masked, head_size);
    s->published++;
    s->incomplete++;
    published_total++;
    outstanding++;
}

static uint64_t due_at(uint64_t message)
{
    return began + (uint64_t)((double)message * (1e9 / opt.rate));
}

/* Publishes whatever is due: up to the window or, at a fixed rate, up to the present moment. Everything that is
 * due goes into one write, as from a client with much to say. */
static void pump(struct stream *s)
{
    struct conn *c = s->publisher;
    while (publishing && c->state == OPEN && !is_blocked(c)) {
        uint64_t moment = clock_now();
        size_t size = 0;
        while (size + frame_size <= WRITE_SIZE || size == 0) {
            uint64_t stamp = moment;
            if (published_total >= publish_limit) {
                publishing = false;
                break;
            }
            if (opt.rate > 0) {
                stamp = due_at(s->published);
                if (stamp >= measure_to)
                    publishing = false;
                if (stamp > moment || stamp >= measure_to)
                    break;
            } else if (s->incomplete >= opt.window) {
                break;
            }
            if (s->incomplete > s->mask) /* the ring is full; at a fixed rate it should be large enough for all */
                break;
            encode(s, write_buffer + size, stamp);
            size += frame_size;
        }
        if (size == 0)
            break;
        last_progress = moment;
        write_all(c, write_buffer, size);
    }
}

static void arm_timer(void)
{
    if (timer_fd < 0 || !publishing || is_blocked(streams[0].publisher))
        return;
    uint64_t at = due_at(streams[0].published);
    struct itimerspec t = {.it_value = {.tv_sec = (time_t)(at / SECOND), .tv_nsec = (long)(at % SECOND)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
}

/* ---- the incoming side: messages ---- */

static inline void release_slot(struct stream *s, struct slot *slot)
{
    if (--slot->remaining == 0) {
        s->incomplete--;
        outstanding--;
    }
}

static inline void accept_message(struct conn *c)
{
    struct stream *s = c->stream;
    struct slot *slot = &s->ring[c->next++ & s->mask];
    if (slot->stamp >= measure_from)
        record_latency(now - slot->stamp);
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

static void skip_message(struct conn *c)
{
    if (missing_count < MAX_MISSING) {
        missing[missing_count].conn = c->index;
        missing[missing_count++].sequence = c->next;
    }
    lost++;
    release_slot(c->stream, &c->stream->ring[c->next++ & c->stream->mask]);
}

static bool was_missing(const struct conn *c, uint64_t sequence)
{
    for (uint32_t i = 0; i < missing_count; i++) {
        if (missing[i].conn == c->index && missing[i].sequence == sequence) {
            missing[i] = missing[--missing_count];
            return true;
        }
    }
    return false;
}

/* A message that is not, byte for byte, the one due: says in which way, and keeps the window moving. */
static void deliver_odd(struct conn *c, const uint8_t *head, bool intact)
{
    struct stream *s = c->stream;
    uint64_t number;
    last_progress = now;
    if (!parse_hex(head, &number) || number >> SEQ_BITS != s->tag >> SEQ_BITS ||
        (number ^ s->tag) >= s->published) {
        corrupt++;
        return;
    }
    number ^= s->tag;
    if (!intact || number == c->next)
        corrupt++;
    if (number >= c->next) {
        while (c->next < number)
            skip_message(c);
        accept_message(c);
    } else if (was_missing(c, number)) {
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
    if (likely(intact && c->next < s->published &&
               memcmp(head, s->ring[c->next & s->mask].head, head_size) == 0))
        accept_message(c);
    else
        deliver_odd(c, head, intact);
}

static void connection_opened(struct conn *c);

static void on_message(struct conn *c, const uint8_t *payload, uint64_t size)
{
    if (likely(c->stream != NULL)) {
        bool intact = size == opt.payload &&
                      (size <= HEAD_SIZE || memcmp(payload + HEAD_SIZE, filler, size - HEAD_SIZE) == 0);
        uint8_t head[HEAD_SIZE];
        if (size < HEAD_SIZE) {
            memset(head, 0, sizeof head);
            memcpy(head, payload, size);
            payload = head;
        }
        deliver(c, payload, intact);
    } else if (c->state == JOINING && size == 6 && memcmp(payload, "joined", 6) == 0) {
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

/* RFC 6455 5.2, 5.4, 5.5: what a server without extensions may send. */
static const char *header_fault(const struct partial *p)
{
    uint8_t opcode = p->header[0] & 15;
    if (p->header[0] & 0x70)
        return "reserved bits";
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

static void take_piece(struct partial *p, const uint8_t *data, size_t size)
{
    while (size > 0 && p->offset < HEAD_SIZE) {
        p->head[p->offset++] = *data++;
        size--;
    }
    if (size > 0) {
        if (p->offset + size > opt.payload || memcmp(data, filler + p->offset - HEAD_SIZE, size) != 0)
            p->intact = false;
        p->offset += size;
    }
}

static void finish_message(struct conn *c, struct partial *p)
{
    p->in_message = false;
    if (c->stream != NULL)
        deliver(c, p->head, p->intact && p->offset == opt.payload);
    else
        on_message(c, p->head, p->offset); /* "joined" */
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
            const char *fault = header_fault(p);
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
                p->intact = c->state == JOINING || opcode == opt.opcode;
                memset(p->head, 0, sizeof p->head);
            }
        }
        bool is_control = (p->header[0] & 15) >= OP_CLOSE;
        size_t size = (size_t)(end - data) < p->frame_left ? (size_t)(end - data) : (size_t)p->frame_left;
        if (is_control) {
            memcpy(p->control + p->control_size, data, size);
            p->control_size += (uint8_t)size;
        } else {
            take_piece(p, data, size);
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
        if (!c->split && end - data >= 10 && data[0] == data_byte && data[1] < 128) {
            size_t header = header_length(data[1]);
            uint64_t length = payload_length(data);
            if (length <= (uint64_t)(end - data) - header) {
                on_message(c, data + header, length);
                data += header + length;
                continue;
            }
        }
        data = feed_slowly(c, data, end);
    }
}

/* ---- connections ---- */

static void connection_lost(struct conn *c, const char *why)
{
    if (c->state == DEAD)
        return;
    bool was_open = c->state == OPEN;
    c->state = DEAD;
    close(c->fd);
    if (!was_open) {
        give_up("connection refused or broken before it was open", why);
        return;
    }
    unexpected_closes++;
    open_count--;
    struct stream *s = c->stream;
    if (s == NULL)
        return;
    lost += s->published - c->next;
    while (c->next < s->published)
        release_slot(s, &s->ring[c->next++ & s->mask]);
    s->receivers--;
    if (c == s->publisher && s->receivers > 0)
        give_up("the publisher was disconnected", why);
}

static void connection_opened(struct conn *c)
{
    c->state = OPEN;
    opened++;
    open_count++;
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
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        connection_lost(c, strerror(error));
        return;
    }
    c->state = UPGRADING;
    write_all(c, (const uint8_t *)request, request_size);
}

static void read_response(struct conn *c)
{
    char *text = (char *)handshakes[c->handshake_slot];
    ssize_t n = recv(c->fd, text + c->handshake_size, HANDSHAKE_SIZE - 1 - c->handshake_size, 0);
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
    if (opt.mode == ROOM) {
        c->state = JOINING;
        write_small_frame(c, OP_TEXT, (const uint8_t *)"join bench", 10);
    } else {
        connection_opened(c);
    }
    /* connection_opened gave the handshake buffer back, but nobody can take it before this turn has ended */
    feed(c, (uint8_t *)text + used, rest);
}

static void read_frames(struct conn *c)
{
    while (c->state != DEAD) {
        ssize_t n = recv(c->fd, read_buffer, READ_SIZE, MSG_DONTWAIT);
        if (n > 0) {
            now = clock_now();
            feed(c, read_buffer, (size_t)n);
            if (n < READ_SIZE)
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
        send_request(c);
    if (c->state == UPGRADING && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
        read_response(c);
    /* read_response may have left data in the socket, and the edge is used up: read on in any case */
    if ((c->state == JOINING || c->state == OPEN) && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) && !c->stalled)
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
            if (opt.mode == ECHO && publishing)
                pump(c->stream);
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

static void make_streams(void)
{
    uint64_t size = opt.window;
    if (opt.rate > 0) /* open loop: nothing bounds how far the server may fall behind, so keep every message */
        size = (uint64_t)(opt.rate * (opt.warmup + opt.seconds + 1)) + opt.messages + 1;
    uint64_t ring = 1;
    while (ring < size)
        ring *= 2;
    stream_count = opt.mode == ECHO ? opt.connections : 1;
    streams = allocate(stream_count, sizeof *streams);
    for (uint32_t i = 0; i < stream_count; i++) {
        streams[i].ring = allocate(ring, sizeof(struct slot));
        streams[i].mask = ring - 1;
        streams[i].tag = (uint64_t)i << SEQ_BITS;
        streams[i].publisher = &conns[i];
        streams[i].receivers = opt.mode == ECHO ? 1 : open_count - opt.stalled;
    }
    for (uint32_t i = 0; i < opt.connections; i++)
        if (!conns[i].stalled)
            conns[i].stream = &streams[opt.mode == ECHO ? i : 0];
}

static void publish(void)
{
    for (uint32_t i = 0; i < stream_count; i++)
        pump(&streams[i]);
    arm_timer();
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
        if (opt.mode != ECHO || delivered_total == 0)
            publish();
        turn(100);
    }
    if (measuring && !measured)
        result = measured_since(start);
    publishing = false;
    for (uint64_t until = clock_now() + LINGER; failure[0] == 0 && clock_now() < until;)
        turn(5);
    for (uint32_t i = 0; i < opt.connections; i++)
        if (conns[i].state == OPEN && conns[i].stream != NULL)
            lost += conns[i].stream->published - conns[i].next;
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
    printf(" \"latency_us\": {\"samples\": %" PRIu64 ", \"mean\": %.1f, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f,"
           " \"p99.9\": %.1f, \"p99.99\": %.1f, \"max\": %.1f},\n",
           latency_count, latency_count ? latency_sum / (double)latency_count / 1e3 : 0, percentile_us(50),
           percentile_us(90), percentile_us(99), percentile_us(99.9), percentile_us(99.99),
           (double)latency_max / 1e3);
    printf(" \"lost\": %" PRIu64 ", \"duplicated\": %" PRIu64 ", \"reordered\": %" PRIu64 ", \"corrupt\": %" PRIu64
           ", \"unexpected_closes\": %" PRIu64 ", \"protocol_errors\": %" PRIu64 ", \"close_code\": %d,\n",
           lost, duplicated, reordered, corrupt, unexpected_closes, protocol_errors, close_code);
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
            "usage: loadgen fanout|room|echo|idle|stalled|rate --port PORT [options]\n"
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
    if (opt.stalled >= opt.connections || (opt.stalled > 0 && opt.mode == ECHO))
        usage("--stalled: at least one connection must read, and an echo has none that does not");
    if (opt.mode == RATE && opt.rate == 0)
        usage("mode rate needs --rate");
    if (opt.rate > 0 && opt.mode == ECHO)
        usage("--rate is for one publisher");
    if (opt.messages > 0 && opt.seconds > 0)
        usage("either --messages or --seconds");
    if (opt.messages == 0 && opt.seconds == 0)
        opt.seconds = 2;
    if (opt.sources == 0)
        opt.sources = (opt.connections + PORTS_PER_SOURCE - 1) / PORTS_PER_SOURCE;
    if (opt.sources > 1 && (ntohl(opt.host.s_addr) >> 24) != 127)
        usage("several source addresses are for loopback");
}

static void prepare_frame(void)
{
    static const char pattern[] = "the quick brown fox jumps over the lazy dog; ";
    size_t n = opt.payload, at = 0;

    filler = allocate(n, 1);
    frame = allocate(n + 14, 1);
    for (size_t i = HEAD_SIZE; i < n; i++)
        filler[i - HEAD_SIZE] = (uint8_t)pattern[i % (sizeof pattern - 1)];
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
    frame_header_size = at + 4;
    frame_size = frame_header_size + n;
    /* a payload under 32 bytes carries the sequence number, and as much of the stamp as it holds */
    head_size = n < HEAD_SIZE ? n : HEAD_SIZE;
    for (size_t i = HEAD_SIZE; i < n; i++)
        frame[frame_header_size + i] = filler[i - HEAD_SIZE] ^ MASK[i & 3];
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
                                    "Sec-WebSocket-Version: 13\r\n\r\n",
                                    opt.path, host, opt.port, KEY);
    read_buffer = allocate(READ_SIZE, 1);
    write_buffer = allocate(frame_size > WRITE_SIZE ? frame_size : WRITE_SIZE, 1);
    handshakes = allocate(opt.connect_concurrency, sizeof *handshakes);
    free_handshakes = allocate(opt.connect_concurrency, sizeof *free_handshakes);
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
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGALRM, &action, NULL);
    alarm(opt.timeout);

    open_connections();
    if (failure[0] == 0 && opt.mode == IDLE) {
        printf("{\"ready\": true, \"connections\": %u, \"connections_per_second\": %.0f}\n", opt.connections,
               connections_per_second());
        fflush(stdout);
        hold();
    } else if (failure[0] == 0) {
        make_streams();
        result = run();
    }
    bool ok = report(result);
    fflush(stdout);
    say_goodbye();
    return ok ? 0 : 1;
}
