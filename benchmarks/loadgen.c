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
 *
 * Where it stands
 *   One program of one translation unit, so that the compiler sees all of it. Its parts in load/ build upon each
 *   other in the order in which they are included.
 */
#define _GNU_SOURCE
#include "load/state.h"

#include "load/streams.h"
#include "load/sending.h"
#include "load/messages.h"
#include "load/frames.h"
#include "load/packed.h"
#include "load/connections.h"
#include "load/run.h"
#include "load/report.h"
#include "load/options.h"

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
