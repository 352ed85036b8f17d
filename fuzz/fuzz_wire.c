/* Fuzzes src_cy/wire.h and src_cy/http.h: each fast function against a plain one, byte by byte.
 *
 *     make fuzz                                      random inputs, with AddressSanitizer and UBSan
 *     clang -fsanitize=fuzzer,address -DLIBFUZZER    coverage-guided
 *
 * Inputs live in heap memory of exactly their size, so that a read beyond the end is seen. */
#include <stdio.h>
#include <stdlib.h>

#include "../src_cy/http.h"
#include "../src_cy/wire.h"

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
            /* What the code point can still be, before the next byte is looked at. */
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

static void check_fields(const uint8_t *data, size_t size) {
    struct wsc_field field;
    uint8_t *exact = copied(data, size);
    ssize_t length = wsc_read_field(exact, size, &field);
    if (length >= 0) {
        CHECK((size_t)length <= size && exact[length - 2] == '\r' && exact[length - 1] == '\n');
        CHECK(field.name == exact && field.name_size > 0 && exact[field.name_size] == ':');
        CHECK(field.value + field.value_size <= exact + length - 2);
        for (size_t i = 0; i < field.value_size; i++) CHECK(field.value[i] != '\r' && field.value[i] != '\n');
        (void)wsc_list_has(field.value, field.value_size, "upgrade");
    }
    (void)wsc_list_has(exact, size, "websocket");
    free(exact);
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
    return 0;
}

#ifndef LIBFUZZER
static uint64_t seed = 88172645463325252ull;

static uint32_t next_random(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (uint32_t)(seed >> 16);
}

/* Pieces that random bytes would hardly ever make. */
static const char *const PIECES[] = {
    "\x81\x85", "\x81\xfe\x00\x7e", "\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00", "\x89\x80", "\x88\x82",
    "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x8e\x88", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\x80",
    "\xe0\x9f\xbf", "\xef\xbf\xbf", "\xf0\x8f", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Connection: keep-alive, Upgrade\r\n", ": ", "\r\n", ",", " \t", "upgrade", "websocket",
};

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 1000000;
    if (argc > 2) seed = (uint64_t)atol(argv[2]) * 2654435761u + 1;
    for (long turn = 0; turn < count; turn++) {
        uint8_t data[400];
        size_t size = 0, most = next_random() % 390;
        while (size < 5 || size < most) {
            const char *piece = PIECES[next_random() % (sizeof PIECES / sizeof *PIECES)];
            size_t length = strlen(piece);
            if (size < 5 || next_random() % 3 == 0 || size + length > sizeof data)
                data[size++] = (uint8_t)(next_random() % 4 ? next_random() : next_random() % 128);
            else
                memcpy(data + size, piece, length), size += length;
            if (size == sizeof data) break;
        }
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%ld inputs, no disagreement\n", count);
    return 0;
}
#endif
