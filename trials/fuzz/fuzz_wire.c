/* Fuzzes src_cy/wire.h and src_cy/http.h: each fast function against a plain one, byte by byte; and
 * compares src_cy/accept_key.h with the vectors of its RFCs.
 *
 *     cc -fsanitize=address,undefined fuzz_wire.c              random inputs: COUNT [SEED]; or the
 *                                                              files and directories that are named
 *     clang -fsanitize=fuzzer,address,undefined -DLIBFUZZER    coverage-guided
 *
 * An input is a mask key (4 bytes), where to split (1 byte), and what is read. It lives in heap
 * memory of exactly its size, so that a read beyond the end is seen. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "../../src_cy/accept_key.h"
#include "../../src_cy/http.h"
#include "../../src_cy/wire.h"

#define CHECK(condition)                                                   \
    do {                                                                   \
        if (!(condition)) {                                                \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);        \
            abort();                                                       \
        }                                                                  \
    } while (0)

static uint8_t *copied(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    CHECK(copy != NULL);
    if (size) memcpy(copy, data, size);
    return copy;
}

/* The head of a client's frame, straight from the figure in RFC 6455 section 5.2. */
static int plain_head(const uint8_t *in, size_t size, struct wsc_head *head) {
    int op, length, extra;
    uint64_t value = 0;
    if (size < 1) return 0;
    op = in[0] & 15;
    if (op != 0 && op != 1 && op != 2 && op != 8 && op != 9 && op != 10) return WSC_BAD_OPCODE;
    if (op >= 8 && in[0] < 128) return WSC_BAD_CONTROL;
    if (size < 2) return 0;
    if (in[1] < 128) return WSC_NOT_MASKED;
    length = in[1] - 128;
    if (op >= 8 && length > 125) return WSC_BAD_CONTROL;
    extra = length == 127 ? 8 : length == 126 ? 2 : 0;
    if (size < 2u + (unsigned)extra) return 0;
    for (int i = 0; i < extra; i++) value = value * 256 + in[2 + i];
    if (extra == 0) value = (uint64_t)length;
    if (extra == 2 && value < 126) return WSC_BAD_LENGTH;
    if (extra == 8 && (value < 65536 || value >= (1ull << 63))) return WSC_BAD_LENGTH;
    if (size < 6u + (unsigned)extra) return 0;
    head->size = value;
    memcpy(&head->key, in + 2 + extra, 4);
    head->opcode = (uint8_t)op;
    head->fin = in[0] / 128;
    head->rsv = in[0] / 16 % 8;
    return 6 + extra;
}

static void check_heads(const uint8_t *data, size_t size) {
    for (size_t n = 0; n <= size && n <= 20; n++) {
        struct wsc_head fast = {0}, plain = {0};
        uint8_t *exact = copied(data, n);
        int result = wsc_read_head(exact, n, &fast);
        CHECK(result == plain_head(exact, n, &plain));
        if (result > 0) {
            CHECK(fast.size == plain.size && fast.key == plain.key && fast.opcode == plain.opcode);
            CHECK(fast.fin == plain.fin && fast.rsv == plain.rsv);
        }
        free(exact);
    }
}

static void check_masks(const uint8_t *data, size_t size, uint32_t key, size_t split) {
    uint8_t *in = copied(data, size), *whole = malloc(size + 1), *parts = malloc(size + 1);
    uint8_t bytes[4];
    int ascii = 1;
    memcpy(bytes, &key, 4);
    CHECK(whole != NULL && parts != NULL);
    wsc_unmask(whole, in, size, key);
    for (size_t i = 0; i < size; i++) {
        CHECK(whole[i] == (in[i] ^ bytes[i % 4]));
        if (whole[i] >= 128) ascii = 0;
    }
    CHECK(wsc_unmask_ascii(parts, in, size, key) == ascii);
    CHECK(!ascii || memcmp(parts, whole, size) == 0);
    wsc_unmask(parts, in, split, key);
    wsc_unmask(parts + split, in + split, size - split, wsc_turn_key(key, split));
    CHECK(memcmp(parts, whole, size) == 0);
    wsc_unmask(in, in, size, key);
    CHECK(memcmp(in, whole, size) == 0);
    free(in), free(whole), free(parts);
}

/* How many bytes of a text are sound, by decoding whole code points; `pending` is set where the
 * text ends within one that could still become sound. */
static size_t plain_utf8(const uint8_t *in, size_t size, int *pending) {
    size_t at = 0;
    *pending = 0;
    while (at < size) {
        uint8_t first = in[at];
        uint32_t point, low;
        int count;
        if (first < 0x80) {
            at++;
            continue;
        }
        if (first >= 0xc0 && first < 0xe0) count = 1, point = first & 31, low = 0x80;
        else if (first >= 0xe0 && first < 0xf0) count = 2, point = first & 15, low = 0x800;
        else if (first >= 0xf0 && first < 0xf8) count = 3, point = first & 7, low = 0x10000;
        else return at;
        for (int i = 1; i <= count; i++) {
            uint32_t least, most;
            int left = 6 * (count - i + 1);
            /* The range of code points that are still possible before the next byte is read. */
            least = point << left, most = (point << left) + (1u << left) - 1;
            if (most < low || least > 0x10ffff || (least >= 0xd800 && most <= 0xdfff)) return at;
            if (at + (size_t)i == size) {
                *pending = 1;
                return at;
            }
            if ((in[at + (size_t)i] & 0xc0) != 0x80) return at;
            point = point << 6 | (in[at + (size_t)i] & 63);
        }
        if (point < low || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff)) return at;
        at += (size_t)count + 1;
    }
    return at;
}

static void check_utf8(const uint8_t *data, size_t size, size_t split) {
    struct wsc_utf8 state = {0, 0, 0};
    uint8_t *first = copied(data, split), *second = copied(data + split, size - split);
    int pending, sound, expected;
    size_t end = plain_utf8(data, size, &pending);
    sound = wsc_check_utf8(&state, first, split);
    if (sound) sound = wsc_check_utf8(&state, second, size - split);
    expected = end == size || pending;
    CHECK(sound == expected);
    if (sound) CHECK((state.need == 0) == (end == size));
    free(first), free(second);
}

/* One field line, in as many passes as RFC 9112 section 5 has rules. */
static ssize_t plain_field(const uint8_t *in, size_t size, struct wsc_field *field) {
    static const char token[] =
        "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t end = 0, colon = 0, first, last;
    while (end + 2 <= size && memcmp(in + end, "\r\n", 2) != 0) end++;
    if (end + 2 > size) return -1;
    for (size_t i = 0; i < end; i++)
        if ((in[i] < 32 && in[i] != 9) || in[i] == 127) return -1;
    while (colon < end && in[colon] != ':') colon++;
    if (colon == 0 || colon == end) return -1;
    for (size_t i = 0; i < colon; i++)
        if (memchr(token, in[i], sizeof token - 1) == NULL) return -1;
    first = colon + 1, last = end;
    while (first < last && (in[first] == 32 || in[first] == 9)) first++;
    while (last > first && (in[last - 1] == 32 || in[last - 1] == 9)) last--;
    field->name = in, field->name_size = colon;
    field->value = in + first, field->value_size = last - first;
    return (ssize_t)end + 2;
}

static int plain_same(const uint8_t *in, size_t size, const char *lower) {
    if (size != strlen(lower)) return 0;
    for (size_t i = 0; i < size; i++) {
        int byte = in[i];
        if (byte >= 65 && byte <= 90) byte += 32;
        if (byte != lower[i]) return 0;
    }
    return 1;
}

static int plain_list_has(const uint8_t *in, size_t size, const char *lower) {
    size_t start = 0;
    for (size_t at = 0; at <= size; at++) {
        size_t first = start, last = at;
        if (at < size && in[at] != ',') continue;
        start = at + 1;
        for (; first < last && (in[first] == 32 || in[first] == 9); first++) {}
        for (; last > first && (in[last - 1] == 32 || in[last - 1] == 9); last--) {}
        if (plain_same(in + first, last - first, lower)) return 1;
    }
    return 0;
}

static void check_list(const uint8_t *in, size_t size) {
    static const char *const items[] = {"upgrade", "websocket", "x"};
    for (int i = 0; i < 3; i++) {
        CHECK(!wsc_list_has(in, size, items[i]) == !plain_list_has(in, size, items[i]));
        CHECK(!wsc_same_text(in, size, items[i]) == !plain_same(in, size, items[i]));
    }
}

static void check_fields(const uint8_t *data, size_t size) {
    struct wsc_field fast = {0}, plain = {0};
    uint8_t *exact = copied(data, size);
    ssize_t length = wsc_read_field(exact, size, &fast);
    CHECK(length == plain_field(exact, size, &plain));
    if (length >= 0) {
        uint8_t *value = copied(fast.value, fast.value_size);
        CHECK(fast.name == plain.name && fast.name_size == plain.name_size);
        CHECK(fast.value_size == plain.value_size);
        CHECK(fast.value_size == 0 || fast.value == plain.value);
        CHECK(fast.value >= exact && fast.value + fast.value_size <= exact + size);
        check_list(value, fast.value_size);
        free(value);
    }
    check_list(exact, size);
    free(exact);
}

/* A request line, in whole lines and by the grammar: its size with the line's end, or -1. */
static ssize_t plain_line(const uint8_t *in, size_t size, struct wsc_line *line) {
    static const char token[] =
        "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t start = size >= 2 && memcmp(in, "\r\n", 2) == 0 ? 2 : 0;
    size_t end = start, method = start, target;
    while (end + 2 <= size && memcmp(in + end, "\r\n", 2) != 0) end++;
    if (end + 2 > size || end < start + 12) return -1;
    while (method < end && in[method] != ' ') method++;
    target = end - 9;
    if (method == start || target <= method + 1 || in[target] != ' ') return -1;
    for (size_t i = start; i < method; i++)
        if (memchr(token, in[i], sizeof token - 1) == NULL) return -1;
    for (size_t i = method + 1; i < target; i++)
        if (in[i] <= 32 || in[i] >= 127) return -1;
    if (memcmp(in + target + 1, "HTTP/1.", 7) != 0) return -1;
    if (in[end - 1] < '0' || in[end - 1] > '9') return -1;
    line->start = start, line->method = method, line->target = target, line->minor = in[end - 1];
    return (ssize_t)end + 2;
}

static void check_line(const uint8_t *data, size_t size) {
    struct wsc_line fast, plain, bytewise;
    uint8_t *exact = copied(data, size);
    ssize_t length;
    int result, slow = 0;
    memset(&fast, 0, sizeof fast), memset(&plain, 0, sizeof plain);
    memset(&bytewise, 0, sizeof bytewise);
    result = wsc_read_line(&fast, exact, size);
    length = plain_line(exact, size, &plain);
    CHECK((result == 1) == (length >= 0));
    if (length >= 0) {
        CHECK(fast.at == (size_t)length && fast.start == plain.start);
        CHECK(fast.method == plain.method && fast.target == plain.target);
        CHECK(fast.minor == plain.minor);
    }
    for (size_t some = 0; some <= size && slow == 0; some++) {
        slow = wsc_read_line(&bytewise, exact, some);
        CHECK(slow != 1 || (ssize_t)some == length);
    }
    CHECK(slow == result);
    free(exact);
}

static const char *const NAMES[] = {
    "host", "origin", "upgrade", "connection", "content-length", "transfer-encoding",
    "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol",
    "sec-websocket-extensions", "x-forwarded-for", "x-forwarded-proto",
};
enum {
    HOST, ORIGIN, UPGRADE, CONNECTION, LENGTH, CODING, KEY, VERSION, PROTOCOL, EXTENSIONS, FOR, PROTO,
    NAMED
};

/* A common upgrade, field by field and rule by rule: how often each name came, and its last value. */
static int plain_upgrade(
    const uint8_t *in, size_t size, struct wsc_field last[NAMED], int came[NAMED], size_t *fields,
    size_t *whole
) {
    struct wsc_line line = {0, 0, 0, 0, 0, 0};
    struct wsc_field field;
    int to_websocket = 0, upgrades = 0;
    ssize_t length = plain_line(in, size, &line);
    size_t at = (size_t)length;
    if (length < 0 || line.start != 0 || line.minor != '1') return 0;
    if (line.method != 3 || memcmp(in, "GET", 3) != 0 || in[4] != '/') return 0;
    for (*fields = 0; at + 2 > size || memcmp(in + at, "\r\n", 2) != 0; ++*fields) {
        length = plain_field(in + at, size - at, &field);
        if (length < 0) return 0;
        for (int i = 0; i < NAMED; i++)
            if (plain_same(field.name, field.name_size, NAMES[i])) came[i]++, last[i] = field;
        if (plain_same(field.name, field.name_size, "upgrade"))
            to_websocket |= plain_list_has(field.value, field.value_size, "websocket");
        if (plain_same(field.name, field.name_size, "connection"))
            upgrades |= plain_list_has(field.value, field.value_size, "upgrade");
        at += (size_t)length;
    }
    *whole = at + 2;
    if (!to_websocket || !upgrades || came[LENGTH] || came[CODING]) return 0;
    if (came[HOST] != 1 || came[KEY] != 1 || came[VERSION] != 1) return 0;
    if (came[ORIGIN] > 1 || came[PROTOCOL] > 1 || came[EXTENSIONS] > 1) return 0;
    if (!plain_same(last[VERSION].value, last[VERSION].value_size, "13")) return 0;
    if (last[KEY].value_size != 24 || memcmp(last[KEY].value + 22, "==", 2) != 0) return 0;
    for (int i = 0; i < 22; i++) {
        static const char digits[] =
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        if (memchr(digits, last[KEY].value[i], sizeof digits - 1) == NULL) return 0;
    }
    return 1;
}

static long upgrades_seen;

static void check_span(const struct wsc_span *span, int came, const struct wsc_field *field) {
    CHECK((span->at != NULL) == (came != 0));
    if (!came) return;
    CHECK(span->size == field->value_size);
    CHECK(span->size == 0 || span->at == field->value);
}

static void check_upgrade(const uint8_t *data, size_t size) {
    struct wsc_upgrade fast;
    struct wsc_field last[NAMED];
    int came[NAMED] = {0};
    size_t fields = 0, whole = 0;
    uint8_t *exact = copied(data, size);
    int result = wsc_read_upgrade(&fast, exact, size);
    memset(last, 0, sizeof last);
    CHECK(!result == !plain_upgrade(exact, size, last, came, &fields, &whole));
    if (result) {
        const uint8_t *end = memchr(exact + 4, ' ', size - 4), *query = memchr(exact, '?', size);
        upgrades_seen++;
        CHECK(fast.fields == fields && fast.size == whole);
        check_span(&fast.host, came[HOST], &last[HOST]);
        check_span(&fast.origin, came[ORIGIN], &last[ORIGIN]);
        check_span(&fast.key, came[KEY], &last[KEY]);
        check_span(&fast.protocols, came[PROTOCOL], &last[PROTOCOL]);
        check_span(&fast.extensions, came[EXTENSIONS], &last[EXTENSIONS]);
        CHECK(!fast.forwarded == !(came[FOR] || came[PROTO]));
        CHECK(fast.path.at == exact + 4);
        if (query == NULL || query > end) query = NULL;
        CHECK(fast.path.at + fast.path.size == (query == NULL ? end : query));
        CHECK((fast.query.at == NULL) == (query == NULL));
        if (query != NULL) {
            int has = 0;
            CHECK(fast.query.at == query + 1 && fast.query.at + fast.query.size == end);
            for (const uint8_t *at = query; at < end; at++)
                if ((at == query || *at == '&') && end - at >= 6 && memcmp(at + 1, "wsc=1", 5) == 0
                    && (at[6] == '&' || at + 6 == end))
                    has = 1;
            CHECK(!wsc_query_has(fast.query.at, fast.query.size, "wsc=1", 5) == !has);
        }
    }
    free(exact);
}

static void check_accept_key(void) {
    static const struct {
        const char *text, *digest; /* RFC 3174 section 7.3, and the empty text */
    } vectors[] = {
        {"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "84983e441c3bd26ebaae4aa1f95129e5e54670f1"},
        {"", "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
    };
    char accept[WSC_ACCEPT_SIZE];
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        uint8_t digest[20];
        char text[41];
        wsc_sha1((const uint8_t *)vectors[i].text, strlen(vectors[i].text), digest);
        for (int at = 0; at < 20; at++) snprintf(text + at * 2, 3, "%02x", digest[at]);
        CHECK(strcmp(text, vectors[i].digest) == 0);
    }
    wsc_accept_key((const uint8_t *)"dGhlIHNhbXBsZSBub25jZQ==", accept); /* RFC 6455 section 1.3 */
    CHECK(memcmp(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", WSC_ACCEPT_SIZE) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint32_t key = 0;
    size_t split;
    if (size < 5) return 0;
    memcpy(&key, data, 4);
    split = (size_t)data[4] * (size - 5) / 255;
    check_heads(data + 5, size - 5);
    check_masks(data + 5, size - 5, key, split);
    check_utf8(data + 5, size - 5, split);
    check_fields(data + 5, size - 5);
    check_line(data + 5, size - 5);
    check_upgrade(data + 5, size - 5);
    return 0;
}

#ifndef LIBFUZZER
static uint64_t seed = 88172645463325252ull;

static uint32_t next_random(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (uint32_t)(seed >> 16);
}

/* Pieces that random bytes would hardly ever make; some hold zeros. */
#define PIECE(text) {text, sizeof text - 1}
static const struct {
    const char *text;
    size_t size;
} PIECES[] = {
    PIECE("\x81\x85"), PIECE("\x89\x80"), PIECE("\x88\x82"),
    PIECE("\x82\xfe\x00\x7d"), PIECE("\x81\xfe\x00\x7e"),
    PIECE("\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff"),
    PIECE("\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00"),
    PIECE("\x02\xff\x7f\xff\xff\xff\xff\xff\xff\xff"),
    PIECE("\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00"),
    PIECE("\xc3\xa9"), PIECE("\xe2\x82\xac"), PIECE("\xf0\x9f\x8e\x88"), PIECE("\xc0\x80"),
    PIECE("\xc2\x80"), PIECE("\xdf\xbf"), PIECE("\xe0\x9f\xbf"), PIECE("\xe0\xa0\x80"),
    PIECE("\xed\x9f\xbf"), PIECE("\xed\xa0\x80"), PIECE("\xee\x80\x80"), PIECE("\xef\xbf\xbf"),
    PIECE("\xf0\x8f\xbf\xbf"), PIECE("\xf0\x90\x80\x80"), PIECE("\xf4\x8f\xbf\xbf"),
    PIECE("\xf4\x90\x80\x80"), PIECE("\xf5\x80\x80\x80"), PIECE("\xf0\x8f"),
    PIECE("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    PIECE("Connection: keep-alive, Upgrade\r\n"), PIECE("X:y\x7f\r\n"), PIECE("X: \r\n"),
    PIECE(": "), PIECE("\r\n"), PIECE(","), PIECE(" \t"), PIECE("upgrade"), PIECE("WebSocket"),
    PIECE("GET / HTTP/1.1\r\n"), PIECE("GET "), PIECE("/ws?a"), PIECE(" HTTP/1."), PIECE("0\r\n"),
};

/* Lines of an upgrade; the first of each row are needed. */
static const char *const LINES[][4] = {
    {"Host: a\r\n", "host:\tb:80 \r\n", "Host:\r\n", ""},
    {"Upgrade: websocket\r\n", "upgrade: x, WebSocket\r\n", "Upgrade: x\r\n", ""},
    {"Connection: Upgrade\r\n", "connection: keep-alive, upgrade\r\n", "Connection: x\r\n", ""},
    {"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
     "sec-websocket-key:AAAAAAAAAAAAAAAAAAAA+/== \r\n", "Sec-WebSocket-Key: abc\r\n", ""},
    {"Sec-WebSocket-Version: 13\r\n", "sec-websocket-version:13\r\n",
     "Sec-WebSocket-Version: 8\r\n", ""},
};
static const char *const OTHERS[] = {
    "Origin: http://a\r\n", "Sec-WebSocket-Protocol: a, b\r\n", "X-Forwarded-For: 192.0.2.1\r\n",
    "Sec-WebSocket-Extensions: permessage-deflate\r\n", "X-Forwarded-Proto: https\r\n",
    "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Cookie: a=b\r\n", "Host: a\r\n",
    "Accept-Language: *\r\n", "X: \xff\r\n", "Sec-WebSocket-Foo: 1\r\n", "X Y: z\r\n",
};
static const char *const FIRST_LINES[] = {
    "GET /ws HTTP/1.1\r\n", "GET /ws?a=b&wsc=1 HTTP/1.1\r\n", "GET /?wsc=1&&x=wsc=1 HTTP/1.1\r\n",
    "GET /ws? HTTP/1.1\r\n", "POST /ws HTTP/1.1\r\n", "GET /ws HTTP/1.0\r\n",
};

static size_t append(uint8_t *data, size_t size, const char *text) {
    memcpy(data + size, text, strlen(text));
    return size + strlen(text);
}

/* Mostly a sound upgrade; sometimes one of its bytes is another one, or it ends early. */
static void try_upgrade(void) {
    uint8_t data[1200] = {0};
    size_t size = 5, order[5] = {0, 1, 2, 3, 4};
    size = append(data, size, FIRST_LINES[next_random() % 2 ? 0 : next_random() % 6]);
    for (size_t i = 0; i < 5; i++) {
        size_t other = i + next_random() % (5 - i), which = order[other];
        order[other] = order[i];
        int variant = (int)(next_random() % 20 ? next_random() % 2 : next_random() % 4);
        size = append(data, size, LINES[which][variant]);
        if (next_random() % 3 == 0)
            size = append(data, size, OTHERS[next_random() % (sizeof OTHERS / sizeof *OTHERS)]);
    }
    size = append(data, size, "\r\n");
    if (next_random() % 4 == 0) data[5 + next_random() % (size - 5)] = (uint8_t)next_random();
    if (next_random() % 8 == 0) size -= next_random() % (size - 5);
    LLVMFuzzerTestOneInput(data, size);
}

static long replayed;

static void replay(const char *path) {
    struct stat about;
    CHECK(stat(path, &about) == 0);
    if (S_ISDIR(about.st_mode)) {
        DIR *directory = opendir(path);
        struct dirent *entry;
        CHECK(directory != NULL);
        while ((entry = readdir(directory)) != NULL) {
            char name[4096];
            if (entry->d_name[0] == '.') continue;
            CHECK(snprintf(name, sizeof name, "%s/%s", path, entry->d_name) < (int)sizeof name);
            replay(name);
        }
        closedir(directory);
    } else {
        size_t size = (size_t)about.st_size;
        uint8_t *data = malloc(size + 1);
        FILE *file = fopen(path, "rb");
        CHECK(data != NULL && file != NULL && fread(data, 1, size, file) == size);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
        replayed++;
    }
}

static void try_random(void) {
    uint8_t data[400];
    size_t size = 0, most = next_random() % 390;
    while (size < 5 || size < most) {
        size_t which = next_random() % (sizeof PIECES / sizeof *PIECES);
        size_t length = PIECES[which].size;
        if (size < 5 || next_random() % 3 == 0 || size + length > sizeof data)
            data[size++] = (uint8_t)(next_random() % 4 ? next_random() : next_random() % 128);
        else
            memcpy(data + size, PIECES[which].text, length), size += length;
        if (size == sizeof data) break;
    }
    LLVMFuzzerTestOneInput(data, size);
}

int main(int argc, char **argv) {
    struct stat about;
    long count = 1000000;
    check_accept_key();
    if (argc > 1 && stat(argv[1], &about) == 0) {
        for (int i = 1; i < argc; i++) replay(argv[i]);
        printf("%ld inputs, no disagreement\n", replayed);
        return 0;
    }
    if (argc > 1) {
        char *end;
        count = strtol(argv[1], &end, 10);
        CHECK(*end == 0); /* neither a number nor something that exists */
    }
    if (argc > 2) seed = (uint64_t)atol(argv[2]) * 2654435761u + 1;
    for (long turn = 0; turn < count; turn++) {
        if (turn % 4) try_random();
        else try_upgrade();
    }
    CHECK(count < 1000 || upgrades_seen > count / 100); /* else it has checked nothing */
    printf("%ld inputs, no disagreement\n", count);
    return 0;
}
#endif
