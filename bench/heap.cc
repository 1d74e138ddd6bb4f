// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The benchmark's victim: a heap of known content and a heartbeat that measures, from inside, how long
// the program stood still. Usage: heap MIB STATS_FILE
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace {

// Mapped shared from STATS_FILE, so that whoever measures reads it without asking the program.
struct Stats {
    std::atomic<uint64_t> ready;         // 1 once the heap is filled
    std::atomic<uint64_t> beats;         // heartbeats so far
    std::atomic<uint64_t> largest_gap;   // ns between two heartbeats; the measurer resets it to 0
    std::atomic<uint64_t> verify_asked;  // the measurer increments it
    std::atomic<uint64_t> verify_done;   // follows verify_asked when the whole heap was read
    std::atomic<uint64_t> bad_words;     // words that were not what they must be
};

uint64_t now_ns() {
    timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<uint64_t>(ts.tv_sec) * 1000000000u + static_cast<uint64_t>(ts.tv_nsec);
}

// Not compressible, not equal on two pages, and known from the index alone (splitmix64).
uint64_t word_at(uint64_t index) {
    uint64_t z = (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 31);
}

void heartbeat(Stats& stats) {
    uint64_t last = now_ns();
    for (;;) {
        timespec pause{0, 200000};
        nanosleep(&pause, nullptr);
        uint64_t now = now_ns();
        if (now - last > stats.largest_gap)
            stats.largest_gap = now - last;
        last = now;
        ++stats.beats;
    }
}

Stats* map_stats(const char* path) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, 4096) != 0)
        return nullptr;
    void* at = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return at == MAP_FAILED ? nullptr : static_cast<Stats*>(at);
}

}  // namespace

int main(int argc, char** argv) {
    Stats* stats = argc == 3 ? map_stats(argv[2]) : nullptr;
    if (stats == nullptr) {
        std::fprintf(stderr, "usage: heap MIB STATS_FILE\n");
        return 2;
    }
    size_t words = std::strtoull(argv[1], nullptr, 10) * (1u << 20) / sizeof(uint64_t);
    auto* heap = static_cast<uint64_t*>(mmap(nullptr, words * sizeof(uint64_t),
                                             PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                                             -1, 0));
    if (heap == MAP_FAILED)
        return 1;
    for (size_t i = 0; i < words; ++i)
        heap[i] = word_at(i);
    std::thread(heartbeat, std::ref(*stats)).detach();
    stats->ready = 1;
    for (;;) {
        usleep(1000);
        uint64_t asked = stats->verify_asked;
        if (asked == stats->verify_done)
            continue;
        uint64_t bad = 0;
        for (size_t i = 0; i < words; ++i)
            bad += heap[i] != word_at(i);
        stats->bad_words = bad;
        stats->verify_done = asked;
    }
}
