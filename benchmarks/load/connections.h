/* Connections from connect to close: handshakes, joins, reads, events. */

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
