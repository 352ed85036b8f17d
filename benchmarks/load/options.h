/* The command line. */

static void usage(const char *why)
{
    fprintf(stderr,
            "loadgen: %s\n"
            "usage: loadgen fanout|room|direct|echo|mixed|idle --port PORT [options]\n"
            "  --host ADDRESS           IPv4, numeric (127.0.0.1)\n"
            "  --path PATH              (/ws)\n"
            "  --connections N          (100)\n"
            "  --connect-concurrency N  handshakes at a time (64: below the listen backlog of asyncio)\n"
            "  --sources N              spread over the loopback addresses 127.0.0.2, ... (as many as N needs)\n"
            "  --payload BYTES          16 or more (128)\n"
            "  --window W               messages in flight, per client in echo (1)\n"
            "  --rate R                 messages per second instead of a window; latency from when each was due\n"
            "  --messages M             stop after M measured messages, or\n"
            "  --seconds S              stop after S measured seconds (2)\n"
            "  --warmup S               seconds before measuring (0.5)\n"
            "  --stalled K              of the N connections, the last K never read\n"
            "  --server-pid PID         report the CPU time that this process took meanwhile\n"
            "  --text, --binary         kind of message (text)\n"
            "  --publishers P           of a fan-out (1)\n"
            "  --rooms R                (1)\n"
            "  --room-size S            members of each; a client may be in several rooms (connections / R)\n"
            "  --random                 random publishers and streams; the window is then that of all together\n"
            "  --wrap TEXT              what a message is sent in, @ for the message itself\n"
            "  --answer TEXT            what it comes back in (as --wrap)\n"
            "  --hello TEXT --ready TEXT  first message of a client, and the beginning of the one it then waits for\n"
            "  --tls                    TLS; certificates are not looked at\n"
            "  --deflate                permessage-deflate, as a browser offers it\n"
            "  --timeout S              give up after S seconds in all (60)\n",
            why);
    exit(2);
}

static double number(const char *text, double low, double high)
{
    char *end;
    double value = strtod(text, &end);
    if (*end != 0 || end == text || !(value >= low && value <= high)) {
        char why[120];
        snprintf(why, sizeof why, "%.40s is not a number from %g to %g", text, low, high);
        usage(why);
    }
    return value;
}

static void parse_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"path", 1, 0, 'P'}, {"connections", 1, 0, 'n'},
        {"connect-concurrency", 1, 0, 'c'}, {"sources", 1, 0, 'o'}, {"payload", 1, 0, 'b'},
        {"window", 1, 0, 'w'}, {"rate", 1, 0, 'r'}, {"messages", 1, 0, 'm'}, {"seconds", 1, 0, 's'},
        {"warmup", 1, 0, 'u'}, {"stalled", 1, 0, 'k'}, {"server-pid", 1, 0, 'i'}, {"text", 0, 0, 't'}, {"binary", 0, 0, 'B'},
        {"publishers", 1, 0, 'q'}, {"rooms", 1, 0, 'R'}, {"room-size", 1, 0, 'S'}, {"random", 0, 0, 'X'},
        {"wrap", 1, 0, 'W'}, {"answer", 1, 0, 'A'}, {"hello", 1, 0, 'H'}, {"ready", 1, 0, 'Y'},
        {"tls", 0, 0, 'L'}, {"deflate", 0, 0, 'D'},
        {"timeout", 1, 0, 'T'}, {0}};
    const char *host = "127.0.0.1";
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'h': host = optarg; break;
        case 'p': opt.port = (uint16_t)number(optarg, 1, 65535); break;
        case 'P': opt.path = optarg; break;
        case 'n': opt.connections = (uint32_t)number(optarg, 1, 1e6); break;
        case 'c': opt.connect_concurrency = (uint32_t)number(optarg, 1, 60000); break;
        case 'o': opt.sources = (uint32_t)number(optarg, 1, 200); break;
        case 'b': opt.payload = (size_t)number(optarg, SEQ_DIGITS, MAX_PAYLOAD); break;
        case 'w': opt.window = (uint64_t)number(optarg, 1, 1e6); break;
        case 'r': opt.rate = number(optarg, 0.01, 1e7); break;
        case 'm': opt.messages = (uint64_t)number(optarg, 1, 1e9); break;
        case 's': opt.seconds = number(optarg, 0.01, 1e6); break;
        case 'u': opt.warmup = number(optarg, 0, 1e6); break;
        case 'k': opt.stalled = (uint32_t)number(optarg, 0, 1e6); break;
        case 'i': opt.server_pid = (int)number(optarg, 1, 1e9); break;
        case 't': opt.opcode = OP_TEXT; break;
        case 'B': opt.opcode = OP_BINARY; break;
        case 'q': opt.publishers = (uint32_t)number(optarg, 1, 1e4); break;
        case 'R': opt.rooms = (uint32_t)number(optarg, 1, 1 << 20); break;
        case 'S': opt.room_size = (uint32_t)number(optarg, 1, 1e6); break;
        case 'X': opt.random = true; break;
        case 'W': opt.wrap = optarg; break;
        case 'A': opt.answer = optarg; break;
        case 'H': opt.hello = optarg; break;
        case 'Y': opt.ready = optarg; break;
        case 'L': opt.tls = true; break;
        case 'D': opt.deflate = true; break;
        case 'T': opt.timeout = (unsigned)number(optarg, 1, 1e6); break;
        default: usage("unknown option");
        }
    }
    if (optind != argc - 1)
        usage("one mode is needed");
    size_t mode = 0;
    while (mode < sizeof MODES / sizeof *MODES && strcmp(argv[optind], MODES[mode]) != 0)
        mode++;
    if (mode == sizeof MODES / sizeof *MODES)
        usage("unknown mode");
    opt.mode = (enum mode)mode;
    if (opt.port == 0)
        usage("--port is needed");
    if (strlen(opt.path) > 500 || opt.path[0] != '/')
        usage("--path starts with / and has at most 500 characters");
    if (inet_pton(AF_INET, host, &opt.host) != 1)
        usage("--host is a numeric IPv4 address");
    if (opt.stalled >= opt.connections || (opt.stalled > 0 && opt.mode != FANOUT && opt.mode != IDLE))
        usage("--stalled: of a fan-out, and at least one connection must read");
    if (opt.publishers > opt.connections - opt.stalled)
        usage("more publishers than connections that read");
    if (opt.room_size == 0)
        opt.room_size = opt.connections / opt.rooms;
    if (opt.room_size == 0 || opt.room_size > opt.connections)
        usage("a room has at least one member, and at most all");
    if ((opt.hello == NULL) != (opt.ready == NULL))
        usage("--hello and --ready belong together");
    if (opt.mode == MIXED)
        opt.random = true;
    else if (opt.mode != ROOM && opt.random)
        usage("--random: of rooms");
#ifndef WITH_TLS
    if (opt.tls)
        usage("built without OpenSSL");
#endif
#ifndef WITH_ZLIB
    if (opt.deflate)
        usage("built without zlib");
#endif
    if (opt.messages > 0 && opt.seconds > 0)
        usage("either --messages or --seconds");
    if (opt.messages == 0 && opt.seconds == 0)
        opt.seconds = 2;
    if (opt.sources == 0)
        opt.sources = (opt.connections + PORTS_PER_SOURCE - 1) / PORTS_PER_SOURCE;
    if (opt.sources > 1 && (ntohl(opt.host.s_addr) >> 24) != 127)
        usage("several source addresses are for loopback");
}
