/* The parts of the load generator share this: its types, its options, and the state of the run. */

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

#include "../channel.h"
#include "../latency.h"

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
