/* The head of an HTTP request, without Python: its lines (RFC 9110 section 5, RFC 9112 sections 3 and
 * 5), and the whole of an upgrade as most clients send it (RFC 6455 section 4.1).
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

/* Kinds of bytes (RFC 9110 section 5.6.2 and 5.5): 1 in a token, 2 in the value of a field. */
static const uint8_t WSC_KINDS[256] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    2, 3, 2, 3, 3, 3, 3, 3, 2, 2, 3, 3, 2, 3, 3, 2,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2,
    2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 3, 3,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 3, 2, 3, 0,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
};

static inline int wsc_is_token(uint8_t byte) { return WSC_KINDS[byte] & 1; }

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
    while (i < size && WSC_KINDS[in[i]] & 2) i++;
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

struct wsc_span {
    const uint8_t *at; /* NULL: it is not there */
    size_t size;
};

/* A whole head that asks for an upgrade in the common form. The spans are of what was read. */
struct wsc_upgrade {
    struct wsc_span path, query, host, origin, key, protocols, extensions;
    size_t size;       /* of the head, with the empty line at its end */
    size_t fields;
    uint8_t forwarded; /* a proxy tells who has asked: X-Forwarded-For or X-Forwarded-Proto */
};

static inline int wsc_is_key(const uint8_t *in, size_t size) {
    /* 16 bytes in base64. */
    if (size != 24 || in[22] != '=' || in[23] != '=') return 0;
    for (size_t i = 0; i < 22; i++) {
        uint8_t letter = in[i] | 32;
        if (!((letter >= 'a' && letter <= 'z') || (in[i] >= '/' && in[i] <= '9') || in[i] == '+'))
            return 0;
    }
    return 1;
}

/* Keeps the value of a field that may come once; 0: it has come already. */
static inline int wsc_keep_value(struct wsc_span *span, const struct wsc_field *field) {
    if (span->at != NULL) return 0;
    span->at = field->value;
    span->size = field->value_size;
    return 1;
}

/* Reads a whole head. Returns 1 for an upgrade that is surely sound: GET, HTTP/1.1, a path, one Host,
 * Upgrade and Connection, version 13, one key, no body, each field once that says more. Returns 0 for
 * all else: more has to come, it is malformed, or it is sound and not common. */
static inline int wsc_read_upgrade(struct wsc_upgrade *found, const uint8_t *in, size_t size) {
    struct wsc_line line = {0, 0, 0, 0, 0, 0};
    struct wsc_span version = {NULL, 0};
    const uint8_t *query;
    int upgrade = 0, connection = 0;
    memset(found, 0, sizeof *found);
    if (size < 5 || memcmp(in, "GET /", 5) != 0) return 0;
    if (wsc_read_line(&line, in, size) <= 0 || line.minor != '1') return 0;
    found->path.at = in + 4;
    found->path.size = line.target - 4;
    query = memchr(found->path.at, '?', found->path.size);
    if (query != NULL) {
        found->query.at = query + 1;
        found->query.size = (size_t)(in + line.target - query - 1);
        found->path.size = (size_t)(query - found->path.at);
    }
    for (size_t at = line.at;; found->fields++) {
        struct wsc_field field;
        ssize_t length;
        int kept = 1;
        if (at + 2 <= size && in[at] == '\r' && in[at + 1] == '\n') {
            found->size = at + 2;
            return upgrade && connection && found->host.at != NULL && found->key.at != NULL
                   && wsc_is_key(found->key.at, found->key.size) && version.size == 2
                   && memcmp(version.at, "13", 2) == 0;
        }
        length = wsc_read_field(in + at, size - at, &field);
        if (length < 0) return 0;
        at += (size_t)length;
#define WSC_IS(text) wsc_same_text(field.name, field.name_size, text)
        switch (field.name_size) {
        case 4:
            if (WSC_IS("host")) kept = wsc_keep_value(&found->host, &field);
            break;
        case 6:
            if (WSC_IS("origin")) kept = wsc_keep_value(&found->origin, &field);
            break;
        case 7:
            if (WSC_IS("upgrade"))
                upgrade |= wsc_list_has(field.value, field.value_size, "websocket");
            break;
        case 10:
            if (WSC_IS("connection"))
                connection |= wsc_list_has(field.value, field.value_size, "upgrade");
            break;
        case 14:
            kept = !WSC_IS("content-length");
            break;
        case 15:
            found->forwarded |= WSC_IS("x-forwarded-for");
            break;
        case 17:
            if (WSC_IS("sec-websocket-key")) kept = wsc_keep_value(&found->key, &field);
            else if (WSC_IS("transfer-encoding")) kept = 0;
            else found->forwarded |= WSC_IS("x-forwarded-proto");
            break;
        case 21:
            if (WSC_IS("sec-websocket-version")) kept = wsc_keep_value(&version, &field);
            break;
        case 22:
            if (WSC_IS("sec-websocket-protocol")) kept = wsc_keep_value(&found->protocols, &field);
            break;
        case 24:
            if (WSC_IS("sec-websocket-extensions"))
                kept = wsc_keep_value(&found->extensions, &field);
            break;
        }
#undef WSC_IS
        if (!kept) return 0;
    }
}

/* Whether a query has this parameter, NAME=VALUE, as it is. */
static inline int wsc_query_has(const uint8_t *in, size_t size, const void *parameter, size_t length) {
    size_t start = 0;
    while (start <= size) {
        const uint8_t *next = start < size ? memchr(in + start, '&', size - start) : NULL;
        size_t end = next == NULL ? size : (size_t)(next - in);
        if (end - start == length && memcmp(in + start, parameter, length) == 0) return 1;
        start = end + 1;
    }
    return 0;
}

#endif
