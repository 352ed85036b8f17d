/* Bytes of a peer, without Python: frame heads, masks, UTF-8 (RFC 6455 sections 5.2, 5.3 and 8.1).
 *
 * Nothing here allocates, keeps a pointer or touches a Python object; every function may be called
 * without the GIL, and reads and writes exactly the bytes that it is told of. */
#ifndef WSC_WIRE_H
#define WSC_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

/* 16 bytes at once, in a register of whatever machine this is. */
typedef uint8_t wsc_block __attribute__((vector_size(16)));

enum {
    WSC_HEAD_MAX = 14,
    WSC_CONTROL_MAX = 125,
    /* Results of wsc_read_head for a head that no frame of a client may have. */
    WSC_BAD_OPCODE = -1,
    WSC_BAD_CONTROL = -2,
    WSC_BAD_LENGTH = -3,
    WSC_NOT_MASKED = -4,
};

struct wsc_head {
    uint64_t size;  /* of the payload */
    uint32_t key;   /* as its four bytes lie in memory */
    uint8_t opcode; /* 0, 1, 2, 8, 9 or 10 */
    uint8_t fin;
    uint8_t rsv;    /* the three reserved bits, RSV1 the highest: 0 to 7 */
};

/* Reads the head of a client's frame. Returns its length in bytes, 0 where some of it is still to
 * come, or one of the faults above as soon as it can be told. */
static inline int wsc_read_head(const uint8_t *in, size_t size, struct wsc_head *head) {
    int length, at = 2;
    if (size < 1) return 0;
    head->fin = in[0] >> 7;
    head->rsv = (in[0] >> 4) & 7;
    head->opcode = in[0] & 15;
    if ((head->opcode & 7) > 2) return WSC_BAD_OPCODE;
    if (head->opcode >= 8 && !head->fin) return WSC_BAD_CONTROL;
    if (size < 2) return 0;
    if (!(in[1] & 128)) return WSC_NOT_MASKED;
    length = in[1] & 127;
    if (length < 126) {
        head->size = (uint64_t)length;
    } else {
        int bytes = length == 126 ? 2 : 8;
        if (head->opcode >= 8) return WSC_BAD_CONTROL;
        if (size < (size_t)(2 + bytes)) return 0;
        head->size = 0;
        for (; at < 2 + bytes; at++) head->size = head->size << 8 | in[at];
        /* The shortest form only, and never the highest bit (RFC 6455 section 5.2). */
        if (head->size < (bytes == 2 ? 126u : 65536u) || head->size >> 63) return WSC_BAD_LENGTH;
    }
    if (size < (size_t)(at + 4)) return 0;
    memcpy(&head->key, in + at, 4);
    return at + 4;
}

/* The key for the bytes after the first `count` of a payload. */
static inline uint32_t wsc_turn_key(uint32_t key, uint64_t count) {
    uint8_t from[4], to[4];
    memcpy(from, &key, 4);
    for (int i = 0; i < 4; i++) to[i] = from[(i + count) & 3];
    memcpy(&key, to, 4);
    return key;
}

/* Unmasks `size` bytes; `out` may be `in`, but not overlap it otherwise. */
static inline void wsc_unmask(uint8_t *out, const uint8_t *in, size_t size, uint32_t key) {
    uint32_t four[4] = {key, key, key, key};
    wsc_block mask;
    size_t i = 0;
    memcpy(&mask, four, 16);
    for (; i + 16 <= size; i += 16) {
        wsc_block block;
        memcpy(&block, in + i, 16);
        block ^= mask;
        memcpy(out + i, &block, 16);
    }
    for (; i < size; i++) out[i] = in[i] ^ ((const uint8_t *)four)[i & 15];
}

/* Whether any byte of a block has its highest bit set. */
static inline int wsc_has_high(wsc_block block) {
    uint64_t halves[2];
    memcpy(halves, &block, 16);
    return ((halves[0] | halves[1]) & 0x8080808080808080u) != 0;
}

/* Unmasks as wsc_unmask does, and returns whether all of it is ASCII; where it is not, `out` is
 * written in part. In one pass, since it is the most common message. */
static inline int wsc_unmask_ascii(uint8_t *out, const uint8_t *in, size_t size, uint32_t key) {
    uint32_t four[4] = {key, key, key, key};
    uint8_t last = 0;
    wsc_block mask;
    size_t i = 0;
    memcpy(&mask, four, 16);
    for (; i + 64 <= size; i += 64) {
        wsc_block block[4];
        memcpy(block, in + i, 64);
        block[0] ^= mask;
        block[1] ^= mask;
        block[2] ^= mask;
        block[3] ^= mask;
        memcpy(out + i, block, 64);
        if (wsc_has_high((block[0] | block[1]) | (block[2] | block[3]))) return 0;
    }
    for (; i + 16 <= size; i += 16) {
        wsc_block block;
        memcpy(&block, in + i, 16);
        block ^= mask;
        memcpy(out + i, &block, 16);
        if (wsc_has_high(block)) return 0;
    }
    for (; i < size; i++) {
        out[i] = in[i] ^ ((const uint8_t *)four)[i & 15];
        last |= out[i];
    }
    return last < 128;
}

/* A text that comes in pieces: what its next byte has to be. All zero at the beginning. */
struct wsc_utf8 {
    uint8_t need;  /* bytes that the code point begun still lacks */
    uint8_t low;   /* what the next of them may be, where need is not 0 */
    uint8_t high;
};

/* The next piece of a text. Returns 0 at the first byte that no UTF-8 text has there (RFC 3629: no
 * overlong forms, no surrogates, nothing above U+10FFFF), else 1. The text is complete where `need`
 * is 0. */
static inline int wsc_check_utf8(struct wsc_utf8 *state, const uint8_t *in, size_t size) {
    uint8_t need = state->need, low = state->low, high = state->high;
    size_t i = 0;
    while (i < size) {
        uint8_t byte;
        if (need == 0) {
            for (; i + 16 <= size; i += 16) {
                wsc_block block;
                memcpy(&block, in + i, 16);
                if (wsc_has_high(block)) break;
            }
            while (i < size && in[i] < 128) i++;
            /* Whole code points of two and three bytes, as most of the world's text is. */
            while (i + 3 <= size && in[i] >= 0xc2 && in[i] < 0xf0) {
                if (in[i] < 0xe0) {
                    if ((in[i + 1] & 0xc0) != 0x80) return 0;
                    i += 2;
                } else {
                    uint32_t point = (uint32_t)(in[i] & 15) << 12 | (in[i + 1] & 63) << 6;
                    if ((in[i + 1] & 0xc0) != 0x80 || (in[i + 2] & 0xc0) != 0x80) return 0;
                    if (point < 0x800 || (point & 0xf800) == 0xd800) return 0;
                    i += 3;
                }
            }
            if (i == size) break;
            byte = in[i++];
            if (byte < 128) continue;
            if (byte < 0xc2 || byte > 0xf4) return 0;
            need = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
            low = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
            high = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
            continue;
        }
        byte = in[i++];
        if (byte < low || byte > high) return 0;
        need--;
        low = 0x80;
        high = 0xbf;
    }
    state->need = need;
    state->low = low;
    state->high = high;
    return 1;
}

#endif
