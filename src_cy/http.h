/* The lines of an HTTP request head, without Python (RFC 9110 section 5, RFC 9112 sections 3 and 5).
 *
 * Nothing here allocates or keeps a pointer; every function may be called without the GIL, and reads
 * exactly the bytes that it is told of, once. */
#ifndef WSC_HTTP_H
#define WSC_HTTP_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

struct wsc_field {
    const uint8_t *name;
    size_t name_size;
    const uint8_t *value; /* without the blanks around it */
    size_t value_size;
};

static inline int wsc_is_blank(uint8_t byte) { return byte == ' ' || byte == '\t'; }

static inline uint8_t wsc_lower(uint8_t byte) {
    return byte >= 'A' && byte <= 'Z' ? byte | 32 : byte;
}

static inline int wsc_is_token(uint8_t byte) {
    uint8_t letter = byte | 32;
    if ((letter >= 'a' && letter <= 'z') || (byte >= '0' && byte <= '9')) return 1;
    return byte != 0 && strchr("!#$%&'*+-.^_`|~", byte) != NULL;
}

/* Whether `size` bytes are the lower-case ASCII text `lower`, in whatever case. */
static inline int wsc_same_text(const uint8_t *in, size_t size, const char *lower) {
    size_t i = 0;
    for (; i < size; i++)
        if (lower[i] == 0 || wsc_lower(in[i]) != (uint8_t)lower[i]) return 0;
    return lower[i] == 0;
}

/* How far a request line was read, and where its parts end. To begin with, all is zero. */
struct wsc_line {
    size_t at;      /* bytes that were read */
    size_t start;   /* of the method: behind the empty line that there may be before it */
    size_t method;  /* end of the method */
    size_t target;  /* end of the target */
    size_t version; /* bytes that were read of the version and the end of the line */
    uint8_t minor;  /* of the version, a digit */
};

/* Reads on in a request line, of which more may have come. Returns 1 once it is whole, 0 where more
 * has to come, and -1 at the first byte that no request line has there. The target is any visible
 * text. An empty line before it is passed over (RFC 9112 section 2.2). */
static inline int wsc_read_line(struct wsc_line *line, const uint8_t *in, size_t size) {
    static const char VERSION[] = "HTTP/1.0\r\n"; /* for 0 any digit (RFC 9110 section 2.5) */
    for (; line->at < size; line->at++) {
        uint8_t byte = in[line->at];
        if (line->at == line->start && line->start < 2 && byte == "\r\n"[line->start]) {
            line->start++;
        } else if (line->start == 1) {
            return -1;
        } else if (line->method == 0) {
            if (byte == ' ' && line->at > line->start) line->method = line->at;
            else if (!wsc_is_token(byte)) return -1;
        } else if (line->target == 0) {
            if (byte == ' ' && line->at > line->method + 1) line->target = line->at;
            else if (byte < 0x21 || byte > 0x7E) return -1;
        } else {
            if (line->version == 7) {
                if (byte < '0' || byte > '9') return -1;
                line->minor = byte;
            } else if (byte != (uint8_t)VERSION[line->version]) {
                return -1;
            }
            if (++line->version == sizeof VERSION - 1) {
                line->at++;
                return 1;
            }
        }
    }
    return 0;
}

/* Reads one field line. Returns its length with the CR LF at its end, or -1 where it is none: a
 * name that is no token, a fold, a control character, or an end that is not CR LF. */
static inline ssize_t wsc_read_field(const uint8_t *in, size_t size, struct wsc_field *field) {
    size_t i = 0, end;
    while (i < size && wsc_is_token(in[i])) i++;
    if (i == 0 || i == size || in[i] != ':') return -1;
    field->name = in;
    field->name_size = i++;
    while (i < size && wsc_is_blank(in[i])) i++;
    field->value = in + i;
    while (i < size && (in[i] >= 128 || (in[i] >= 32 && in[i] < 127) || in[i] == '\t')) i++;
    if (i + 2 > size || in[i] != '\r' || in[i + 1] != '\n') return -1;
    end = i;
    while (in + end > field->value && wsc_is_blank(in[end - 1])) end--;
    field->value_size = (size_t)(in + end - field->value);
    return (ssize_t)(i + 2);
}

/* Whether a list of comma-separated items has this lower-case one, in whatever case. */
static inline int wsc_list_has(const uint8_t *in, size_t size, const char *lower) {
    size_t start = 0;
    while (start <= size) {
        size_t end = start, last;
        while (end < size && in[end] != ',') end++;
        last = end;
        while (start < last && wsc_is_blank(in[start])) start++;
        while (last > start && wsc_is_blank(in[last - 1])) last--;
        if (wsc_same_text(in + start, last - start, lower)) return 1;
        start = end + 1;
    }
    return 0;
}

#endif
