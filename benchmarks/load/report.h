/* The report, one line of JSON, and whether all was right. */

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
    print_histogram("latency_us", &latencies);
    print_histogram("connect_us", &connect_latencies);
    printf(" \"lost\": %" PRIu64 ", \"duplicated\": %" PRIu64 ", \"reordered\": %" PRIu64 ", \"corrupt\": %" PRIu64
           ", \"unexpected_closes\": %" PRIu64 ", \"protocol_errors\": %" PRIu64 ", \"close_code\": %d,\n",
           lost, duplicated, reordered, corrupt, unexpected_closes, protocol_errors, close_code);
    printf(" \"bytes_received\": %" PRIu64 ", \"compressed\": %" PRIu64 ", \"rooms\": %u, \"room_size\": %u,"
           " \"publishers\": %u,\n",
           bytes_received, messages_packed, opt.rooms, opt.room_size, opt.publishers);
    printf(" \"stalled\": %u, \"stalled_closed\": %u, \"pings\": %" PRIu64 ", \"ignored\": %" PRIu64
           ", \"cpu_seconds\": %.4f, \"cpu_share\": %.3f, \"server_cpu_seconds\": %.2f, \"server_cpu_share\": %.3f}\n",
           opt.stalled, count_stalled_closed(), pings, messages_ignored, m.cpu, seconds > 0 ? m.cpu / seconds : 0,
           m.server_cpu, seconds > 0 ? m.server_cpu / seconds : 0);
    return ok;
}
