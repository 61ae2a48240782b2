/* Small frames, one write or read a frame, as a VMM does it on a tap's descriptor; and a sender on the wire.
 *
 *   small_frames write FD CPU MILLISECONDS SOURCE DESTINATION         frames into the descriptor
 *   small_frames wire INTERFACE CPU MILLISECONDS SOURCE DESTINATION   frames out of an interface
 *   small_frames turns INTERFACE CPU MILLISECONDS SOURCE DESTINATION FD   the same, each batch read from FD in turn
 *   small_frames read FD CPU                                          frames out of it, until standard input ends
 *
 * Prints: frames, nanoseconds a frame; of turns the sender's and then the reader's.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { VNET_HEADER = 12, LENGTH = 60, BATCH = 64, SAMPLES = 1 << 16, SOCKET = 64 << 20 };

/* a vnet header that asks for nothing, an Ethernet frame with UDP in IPv4 to the discard port */
static unsigned char buffer[VNET_HEADER + LENGTH] = {
    [VNET_HEADER + 12] = 0x08, 0x00, 0x45, 0, 0, LENGTH - 14, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1,
    0x10, 0, 0, 9, 0, LENGTH - 34, 0, 0};
static unsigned char *const frame = buffer + VNET_HEADER;

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void address(unsigned char *at, const char *text) {
    if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", at, at + 1, at + 2, at + 3, at + 4, at + 5) != 6)
        errx(2, "no MAC: %s", text);
}

static void checksum(void) {
    unsigned sum = 0;
    for (int i = 14; i < 34; i += 2)
        sum += frame[i] << 8 | frame[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~(sum + (sum >> 16));
    frame[24] = sum >> 8;
    frame[25] = sum;
}

static void write_batch(int fd) {
    for (int i = 0; i < BATCH; i++)
        if (write(fd, buffer, VNET_HEADER + LENGTH) != VNET_HEADER + LENGTH)
            err(1, "write");
}

static void wire_batch(int fd) {
    static struct iovec vector = {.iov_len = LENGTH};
    static struct mmsghdr messages[BATCH];
    vector.iov_base = frame;
    for (int i = 0; i < BATCH; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &vector, .msg_iovlen = 1};
    for (int sent = 0; sent < BATCH;) {
        int done = sendmmsg(fd, messages + sent, BATCH - sent, 0);
        if (done < 0 && errno != ENOBUFS)
            err(1, "sendmmsg");
        sent += done > 0 ? done : 0;
    }
}

/* A macvtap's queue keeps frames in their sender's account, so that a small one would hold the sender up. */
static int wire(const char *name) {
    struct sockaddr_ll place = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(name)};
    int fd = socket(AF_PACKET, SOCK_RAW, 0), on = 1, size = SOCKET;
    if (fd < 0 || bind(fd, (void *)&place, sizeof place) ||
        setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on) ||
        setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size))
        err(1, "packet socket on %s", name);
    return fd;
}

/* read what is there, frames of ours are counted */
static long drain(int fd) {
    static unsigned char room[VNET_HEADER + 65536];
    long frames = 0;
    ssize_t length;
    while ((length = read(fd, room, sizeof room)) > 0)
        frames += length == VNET_HEADER + LENGTH;
    if (errno != EAGAIN)
        err(1, "read");
    return frames;
}

static int by_length(const void *one, const void *other) {
    long difference = *(const long *)one - *(const long *)other;
    return (difference > 0) - (difference < 0);
}

struct figures {
    long frames;
    double sending, reading;
};

/* The median batch is one that nothing else on the machine has disturbed. */
static double median(long *lengths, long count) {
    qsort(lengths, count, sizeof *lengths, by_length);
    return (double)lengths[count / 2] / BATCH;
}

static struct figures run(void (*batch)(int), int fd, int reader, long nanoseconds) {
    static long sending[SAMPLES], reading[SAMPLES];
    long count = 0, begin = now(), last = begin;
    do {
        batch(fd);
        long sent = now();
        sending[count] = sent - last;
        int whole = reader < 0 || drain(reader) == BATCH; /* the kernel may put a frame off for a moment */
        last = now();
        reading[count] = last - sent;
        count += whole;
    } while (last - begin < nanoseconds && count < SAMPLES);
    if (!count)
        errx(1, "no frame has come through");
    return (struct figures){count * BATCH, median(sending, count), median(reading, count)};
}

/* Until standard input ends; the time is that from the first frame to the last. It spins: to be woken after every
 * frame would cost the sender more than the frame's whole way. */
static struct figures read_all(int fd) {
    struct pollfd end = {STDIN_FILENO, POLLIN, 0};
    long frames = 0, begin = 0, last = 0;
    for (;;) {
        long found = drain(fd);
        if (found) {
            last = now();
            frames += begin ? found : 0;
            begin = begin ? begin : last;
        } else if (poll(&end, 1, 0)) {
            return (struct figures){frames, frames ? (double)(last - begin) / frames : 0, 0};
        }
    }
}

/* A processor to ourselves: a reader that had to wait for other programs would lose frames. */
static void reserve(const char *processor) {
    struct sched_param first = {.sched_priority = 1};
    cpu_set_t where;
    CPU_ZERO(&where);
    CPU_SET(atoi(processor), &where);
    if (sched_setaffinity(0, sizeof where, &where) || sched_setscheduler(0, SCHED_FIFO, &first))
        err(1, "cannot have processor %s", processor);
}

int main(int count, char **words) {
    int reading = count == 4 && !strcmp(words[1], "read");
    int turns = count == 8 && !strcmp(words[1], "turns");
    if (!reading && !turns && count != 7)
        errx(2, "see the head of the source");
    reserve(words[3]);
    struct figures result;
    if (reading) {
        result = read_all(atoi(words[2]));
    } else {
        int writing = !strcmp(words[1], "write");
        int fd = writing ? atoi(words[2]) : wire(words[2]);
        address(frame + 6, words[5]);
        address(frame, words[6]);
        checksum();
        result = run(writing ? write_batch : wire_batch, fd, turns ? atoi(words[7]) : -1, atol(words[4]) * 1000000L);
    }
    printf("%ld %.1f %.1f\n", result.frames, result.sending, result.reading);
}
