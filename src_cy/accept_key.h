/* The answer to the key of an upgrade (RFC 6455 section 4.2.2): SHA-1 (RFC 3174) and base64.
 *
 * The peer learns by it that a WebSocket server has read its request; nothing is kept secret by it.
 * Nothing here allocates. */
#ifndef WSC_ACCEPT_KEY_H
#define WSC_ACCEPT_KEY_H

#include <stdint.h>
#include <string.h>

#define WSC_KEY_SIZE 24
#define WSC_ACCEPT_SIZE 28

static inline uint32_t wsc_rotate(uint32_t word, int by) { return word << by | word >> (32 - by); }

/* Takes one block of 64 bytes into the hash (RFC 3174 section 6.1). */
static inline void wsc_sha1_block(uint32_t hash[5], const uint8_t *block) {
    uint32_t w[80], a = hash[0], b = hash[1], c = hash[2], d = hash[3], e = hash[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[i * 4] << 24 | (uint32_t)block[i * 4 + 1] << 16
               | (uint32_t)block[i * 4 + 2] << 8 | block[i * 4 + 3];
    for (int i = 16; i < 80; i++) w[i] = wsc_rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
#define WSC_ROUND(i, f, k)                                              \
    do {                                                                \
        uint32_t next = wsc_rotate(a, 5) + (f) + e + (k) + w[i];        \
        e = d, d = c, c = wsc_rotate(b, 30), b = a, a = next;           \
    } while (0)
    for (int i = 0; i < 20; i++) WSC_ROUND(i, (b & c) | (~b & d), 0x5a827999u);
    for (int i = 20; i < 40; i++) WSC_ROUND(i, b ^ c ^ d, 0x6ed9eba1u);
    for (int i = 40; i < 60; i++) WSC_ROUND(i, (b & c) | (b & d) | (c & d), 0x8f1bbcdcu);
    for (int i = 60; i < 80; i++) WSC_ROUND(i, b ^ c ^ d, 0xca62c1d6u);
#undef WSC_ROUND
    hash[0] += a, hash[1] += b, hash[2] += c, hash[3] += d, hash[4] += e;
}

/* The SHA-1 of up to 119 bytes. */
static inline void wsc_sha1(const uint8_t *data, size_t size, uint8_t digest[20]) {
    uint32_t hash[5] = {0x67452301u, 0xefcdab89u, 0x98badcfeu, 0x10325476u, 0xc3d2e1f0u};
    uint8_t blocks[128] = {0};
    size_t end = size < 56 ? 64 : 128;
    memcpy(blocks, data, size);
    blocks[size] = 0x80;
    blocks[end - 2] = (uint8_t)(size * 8 >> 8);
    blocks[end - 1] = (uint8_t)(size * 8);
    for (size_t at = 0; at < end; at += 64) wsc_sha1_block(hash, blocks + at);
    for (int i = 0; i < 20; i++) digest[i] = (uint8_t)(hash[i / 4] >> (24 - i % 4 * 8));
}

/* Writes the value of Sec-WebSocket-Accept for one of Sec-WebSocket-Key. */
static inline void wsc_accept_key(const uint8_t key[WSC_KEY_SIZE], char out[WSC_ACCEPT_SIZE]) {
    static const char GUID[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    static const char DIGITS[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t text[WSC_KEY_SIZE + sizeof GUID - 1], digest[21] = {0};
    memcpy(text, key, WSC_KEY_SIZE);
    memcpy(text + WSC_KEY_SIZE, GUID, sizeof GUID - 1);
    wsc_sha1(text, sizeof text, digest);
    for (int i = 0; i < 21; i += 3, out += 4) {
        uint32_t bits = (uint32_t)digest[i] << 16 | (uint32_t)digest[i + 1] << 8 | digest[i + 2];
        out[0] = DIGITS[bits >> 18];
        out[1] = DIGITS[bits >> 12 & 63];
        out[2] = DIGITS[bits >> 6 & 63];
        out[3] = i < 18 ? DIGITS[bits & 63] : '=';
    }
}

#endif
