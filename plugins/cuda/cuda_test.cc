// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <map>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "plugins/cuda/command_backend.h"
#include "plugins/cuda/device_store.h"
#include "plugins/cuda/devices.h"
#include "plugins/cuda/devices_image.h"
#include "plugins/cuda/helper_backend.h"
#include "plugins/cuda/one_process_test_util.h"
#include "plugins/cuda/preflight.h"
#include "plugins/cuda/settings.h"
#include "plugins/cuda/storage_image.h"
#include "plugins/cuda/undo_record.h"

namespace checkpointd::cuda {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

Result<Settings> read(std::map<std::string, std::string> texts) {
    return Settings::read([&](const char* name) {
        auto found = texts.find(name);
        return found == texts.end() ? nullptr : found->second.c_str();
    });
}

TEST(CudaSettings, AreRead) {
    auto none = read({});
    ASSERT_TRUE(none);
    EXPECT_FALSE(none->by_command);
    EXPECT_EQ(none->on_timeout, OnTimeout::kResume);
    auto all = read({{"backend", "command"}, {"command", "/opt/cc"}, {"lock-timeout", "1.5s"},
                     {"checkpoint-timeout", "2min"}, {"on-timeout", "leave"}, {"check-memory", "no"},
                     {"device-map", fmt::format("{}={},{}={}", kOne, kTwo, kTwo, kOne)}, {"storage", "custom"}});
    ASSERT_TRUE(all) << all.error().text();
    EXPECT_TRUE(all->by_command);
    EXPECT_EQ(all->command, "/opt/cc");
    EXPECT_EQ(all->lock_timeout, milliseconds(1500));
    EXPECT_EQ(all->checkpoint_timeout, milliseconds(120000));
    EXPECT_EQ(all->on_timeout, OnTimeout::kLeave);
    EXPECT_FALSE(all->checks_memory);
    EXPECT_EQ(none->storage, StorageWanted::kAuto);
    EXPECT_EQ(all->storage, StorageWanted::kCustom);
    ASSERT_EQ(all->device_map.size(), 2u);
    EXPECT_EQ(to_string(all->device_map[1].from), kTwo);
    EXPECT_EQ(to_string(all->device_map[1].to), kOne);
}

TEST(CudaSettings, AllThatIsWrongIsToldAtOnce) {
    auto wrong = read({{"backend", "magic"}, {"lock-timeout", "soon"}, {"checkpoint-timeout", "0"},
                       {"on-timeout", "panic"}, {"check-memory", "maybe"}, {"device-map", "GPU-1=GPU-2"}, {"check-ipc", "perhaps"},
                       {"storage", "tape"}});
    EXPECT_THAT(read({{"device-map", fmt::format("{}={},{}={}", kOne, kTwo, kOne, kOne)}}).error().text(),
                HasSubstr("it is named twice"));
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().kind, ErrorKind::kBadInput);
    EXPECT_EQ(wrong.error().causes.size(), 8u) << wrong.error().text();
    EXPECT_THAT(wrong.error().text(), HasSubstr("allowed: command, driver-api"));
}

TEST(CudaSettings, OfUuidsOnlyWholeOnesAreTaken) {
    for (const char* bad : {"", "GPU-", "GPU-00112233-4455-6677-8899-aabbccddeef", "00112233-4455-6677-8899-aabbccddeeff",
                            "GPU-0011223g-4455-6677-8899-aabbccddeeff", "MIG-00112233-4455-6677-8899-aabbccddeeff"})
        EXPECT_FALSE(parse_uuid(bad)) << bad;
    EXPECT_EQ(to_string(*parse_uuid(kOne)), kOne);
}

// One device that was used and one that was not.
DevicesImage image() {
    DevicesImage image{3, two_devices(), {"gpu-cs-7.img"}, {}, {}};
    image.after = image.before;
    image.after->devices[0].free_bytes = 40ull << 30;
    return image;
}

TEST(CudaDevices, TheImageSaysWhatWasTakenOff) {
    auto wanted = parse_devices(to_json(image()));
    ASSERT_TRUE(wanted) << wanted.error().text();
    EXPECT_EQ(wanted->processes, 3u);
    ASSERT_EQ(wanted->devices.size(), 2u);
    EXPECT_EQ(wanted->devices[0].bytes, 30ull << 30);
    EXPECT_EQ(wanted->devices[1].bytes, 0u);
    EXPECT_EQ(wanted->storages, std::vector<std::string>{"gpu-cs-7.img"});
    for (const char* bad : {"", "[]", "{}", "{\"processes\": 1}", "{\"processes\": 1, \"devices\": [{\"uuid\": \"x\"}]}",
                            "{\"processes\": 1, \"devices\": [], \"storages\": [1]}"})
        EXPECT_FALSE(parse_devices(bad)) << bad;
}

TEST(CudaDevices, WhatOthersHadIsNotInTheImage) {
    DevicesImage known = image();
    known.known = {{*parse_uuid(kOne), 8ull << 30, 0}, {*parse_uuid(kTwo), 1ull << 30, 0}, {*parse_uuid(kOne), 2ull << 30, 0}};
    auto partly = parse_devices(to_json(known));
    EXPECT_EQ(partly->devices[0].bytes, 30ull << 30) << "of one process it is not known";
    EXPECT_EQ(partly->devices[1].bytes, 1ull << 30) << "as many were taken by others, nothing became free";
    known.after.reset();
    auto all = parse_devices(to_json(known));
    EXPECT_EQ(all->devices[0].bytes, 10ull << 30);
    EXPECT_EQ(all->devices[1].bytes, 1ull << 30);
}

TEST(CudaDevices, WhatIsMissingIsNamed) {
    const auto wanted = parse_devices(to_json(image()))->devices;
    const std::vector<GpuPair> map{{*parse_uuid(kOne), *parse_uuid(kTwo)}};
    Answer here;
    auto missing = find_missing(wanted, here, {}, false);
    ASSERT_EQ(missing.size(), 1u);
    EXPECT_THAT(missing[0].line(), HasSubstr(std::string(kOne) + ": is not here"));
    here = *image().after;
    EXPECT_TRUE(find_missing(wanted, here, {}, true).empty()) << "the one that was not used may be full";
    auto full = find_missing(wanted, here, map, true);
    ASSERT_EQ(full.size(), 1u) << "5 GiB are free there";
    EXPECT_THAT(full[0].line(), HasSubstr("check-memory: no"));
    EXPECT_TRUE(find_missing(wanted, here, map, false).empty()) << "nobody asks for the room";
    here.devices[1].free_bytes = 30ull << 30;
    EXPECT_TRUE(find_missing(wanted, here, map, true).empty());
}

TEST(CudaDevices, ADriverThatIsTooOldIsNamed) {
    OneProcess driver;
    driver.devices.code = kNotInitialized;  // as the helper says it
    std::snprintf(driver.devices.text, sizeof(driver.devices.text), "libcuda.so.1: is of CUDA 12.0");
    auto none = ask_devices(driver, kDeadline);
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().kind, ErrorKind::kUnsupported);
    EXPECT_THAT(none.error().line(), HasSubstr("is of CUDA 12.0 (install a driver of version 570 (CUDA 12.8) or newer)"));
}

TEST(CudaPreflight, InstancesAreNamedByDevice) {
    char folder[] = "/tmp/cuda-test-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    const std::filesystem::path top(folder);
    for (const char* path : {"gpu0/mig", "gpu1/mig/gi3", "mig"})
        std::filesystem::create_directories(top / path);
    const auto blockers = find_instances(top);
    std::filesystem::remove_all(top);
    ASSERT_EQ(blockers.size(), 1u);
    EXPECT_THAT(blockers[0].line(), HasSubstr("gpu1: is divided into instances"));
    EXPECT_TRUE(find_instances(top).empty()) << "no driver";
}

TEST(CudaPreflight, EventsForOthersAreNamed) {
    EXPECT_TRUE(find_ipc(getpid()).empty());
    char path[] = "/dev/shm/cuda.shm.test.XXXXXX";
    ScopedFd file(mkstemp(path));
    ASSERT_TRUE(file);
    ASSERT_EQ(ftruncate(file.get(), 4096), 0);
    void* mapped = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, file.get(), 0);
    unlink(path);
    ASSERT_NE(mapped, MAP_FAILED);
    const auto blockers = find_ipc(getpid());
    munmap(mapped, 4096);
    ASSERT_EQ(blockers.size(), 1u);
    EXPECT_THAT(blockers[0].line(), HasSubstr(fmt::format("(CUDA): has {} (deleted) mapped", path)));
}

TEST(CudaPreflight, OfStagingAllThatCanBeTakenCounts) {
    EXPECT_TRUE(check_staging({{getpid(), 1 << 20}}, 1 << 20).empty());
    EXPECT_TRUE(check_staging({{getpid(), uint64_t{1} << 60}}, 1 << 20).empty()) << "no more than the devices hold";
    const auto blockers = check_staging({{getpid(), uint64_t{1} << 60}}, uint64_t{1} << 60);
    ASSERT_FALSE(blockers.empty());
    EXPECT_THAT(blockers[0].line(), HasSubstr("host memory: has"));
}

TEST(CudaUndo, HowLongItMayTakeIsInTheRecord) {
    constexpr uint64_t kBytes = 80'000'000'000;
    const UndoRecord record{12, 3456789012345, UndoRecord::kByStorage, kBytes, std::chrono::minutes(5), "/a b/gpu-cs-12.img"};
    const auto read = UndoRecord::parse(record.text());
    ASSERT_TRUE(read);
    EXPECT_EQ(read->text(), record.text());
    EXPECT_EQ(read->rest, "/a b/gpu-cs-12.img");
    EXPECT_EQ(read->undo_time(), std::chrono::seconds(860)) << "from a slow disk";
    const UndoRecord command{12, 1, UndoRecord::kByCommand, 0, std::chrono::minutes(20), "/opt/cuda-checkpoint"};
    EXPECT_EQ(UndoRecord::parse(command.text())->undo_time(), std::chrono::minutes(20)) << "as the policy has it";
    EXPECT_EQ(UndoRecord::parse("12 1 api 0 5 ")->undo_time(), std::chrono::minutes(1));
    EXPECT_FALSE(UndoRecord::parse("12 1 api"));
    EXPECT_FALSE(UndoRecord::parse(""));
}

std::vector<Region> two_regions() {
    std::vector<Region> regions{{*parse_uuid(kOne), 5000, 0}, {*parse_uuid(kTwo), 4096, 0}};
    place_regions(regions);
    return regions;
}

TEST(CudaStorage, AHeaderIsReadAsItWasWritten) {
    const auto regions = two_regions();
    EXPECT_EQ(regions[0].offset, 4096u);
    EXPECT_EQ(regions[1].offset, 3 * 4096u) << "at a multiple of 4096 behind the first";
    const std::string header = storage_header(regions);
    ASSERT_EQ(header.size(), kStorageHeader);
    // Bytes of CRIU's format: magic, size, version 1, and of the first region its size and its place.
    EXPECT_EQ(header.substr(0, 4), "CUCS");
    EXPECT_THAT(header.substr(8), testing::StartsWith(std::string("\x08\x01\x12\x18\x08\x88\x27\x10\x80\x20\x1a\x10", 12)));
    auto read = parse_storage_header(header, 4 * 4096, "x");
    ASSERT_TRUE(read) << read.error().text();
    ASSERT_EQ(read->size(), 2u);
    EXPECT_EQ((*read)[1].uuid, *parse_uuid(kTwo));
    EXPECT_EQ((*read)[1].size, 4096u);
    EXPECT_EQ((*read)[1].offset, 3 * 4096u);
}

TEST(CudaStorage, WhatCannotBeIsRefused) {
    const std::string good = storage_header(two_regions());
    EXPECT_FALSE(parse_storage_header(good, 4 * 4096 - 1, "x")) << "shorter than it says";
    EXPECT_FALSE(parse_storage_header(good.substr(1), 1 << 20, "x"));
    EXPECT_FALSE(parse_storage_header("", 1 << 20, "x"));
    for (size_t at = 0; at < 8; ++at) {
        std::string bad = good;
        bad[at] = '\xff';
        EXPECT_FALSE(parse_storage_header(bad, 1 << 20, "x")) << "byte " << at;
    }
    auto twice = two_regions();
    twice[1].uuid = twice[0].uuid;
    EXPECT_FALSE(parse_storage_header(storage_header(twice), 1 << 20, "x"));
    auto odd = two_regions();
    odd[0].offset = 4097;
    EXPECT_FALSE(parse_storage_header(storage_header(odd), 1 << 20, "x"));
    odd[0].offset = ~uint64_t{4095};
    EXPECT_FALSE(parse_storage_header(storage_header(odd), 1 << 20, "x")) << "an end beyond all numbers";
}

TEST(CudaStorage, WhatDoesNotFitTheFileIsKeptInMemory) {
    ScopedFd file(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    const int fd = dup(file.get());
    DeviceStore store(std::move(file), two_regions());
    alignas(4096) char buffer[8192];
    std::fill_n(buffer, 5000, 'a');
    ASSERT_TRUE(store.write(4096, buffer, 5000));
    EXPECT_EQ(buffer[5000], 0) << "whole pages are written, without anything of others";
    ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), 0);  // from here on the disk is full
    std::fill_n(buffer, 4096, 'b');
    EXPECT_FALSE(store.write(3 * 4096, buffer, 4096));
    EXPECT_TRUE(store.has(4096));
    EXPECT_FALSE(store.has(3 * 4096));
    store.overflow();
    ASSERT_TRUE(store.write(3 * 4096, buffer, 4096));
    ASSERT_TRUE(store.read(4096, buffer, 5000));
    EXPECT_EQ(std::string(buffer, 5000), std::string(5000, 'a'));
    ASSERT_TRUE(store.read(3 * 4096, buffer, 4096));
    EXPECT_EQ(std::string(buffer, 4096), std::string(4096, 'b'));
    EXPECT_FALSE(store.read(8 * 4096, buffer, 4096)) << "beyond the end of the file";
    close(fd);
}

// Its checkpoint takes until there is FOLDER/go, and makes FOLDER/done.
std::string slow_command(const std::string& folder) {
    std::string path = folder + "/cuda-checkpoint";
    std::ofstream(path) << "#!/bin/sh\ncd " << folder << "\ncase $2 in checkpoint) while [ ! -e go ]; do sleep 0.01; done; "
                           ">done;; esac\ncase $1 in --get-state) [ -e done ] && echo checkpointed || echo locked;; esac\n";
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path;
}

TEST(CudaCommand, NobodyOvertakesOneThatIsUnderWay) {
    const auto in = [](milliseconds time) { return std::chrono::steady_clock::now() + time; };
    constexpr milliseconds kSoon{300}, kLong{60000};
    char folder[] = "/tmp/cuda-test-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    const std::string command = slow_command(folder);
    auto first = std::make_unique<CommandBackend>(command, folder);
    auto late = first->ask(request_for(Operation::kCheckpoint, 12), in(kSoon), -1);
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().kind, ErrorKind::kTimeout);
    first.reset();  // as with a job that has died
    CommandBackend second(command, folder);
    auto early = second.ask(request_for(Operation::kState, 12), in(kSoon), -1);
    ASSERT_FALSE(early) << "it was asked: " << early->value;
    EXPECT_EQ(early.error().kind, ErrorKind::kTimeout);
    EXPECT_THAT(early.error().text(), HasSubstr("pid 12"));
    EXPECT_TRUE(second.ask(request_for(Operation::kState, 13), in(kLong), -1)) << "another process";
    std::ofstream(std::string(folder) + "/go");
    auto now = second.ask(request_for(Operation::kState, 12), in(kLong), -1);
    ASSERT_TRUE(now) << now.error().text();
    EXPECT_EQ(now->value, static_cast<int32_t>(ProcessState::kCheckpointed));
    EXPECT_FALSE(std::filesystem::exists(turn_file(folder, 12)));
    std::filesystem::remove_all(folder);
}

// Answers that, whatever it is asked.
std::string made_teller(const std::string& folder, const Answer& answer) {
    std::ofstream(folder + "/answer").write(reinterpret_cast<const char*>(&answer), sizeof(answer));
    std::ofstream(folder + "/teller") << "#!/bin/sh\nexec cat " << folder << "/answer\n";
    std::filesystem::permissions(folder + "/teller", std::filesystem::perms::owner_all);
    return folder + "/teller";
}

TEST(CudaCommand, AnotherTellsOfMemory) {
    char folder[] = "/tmp/cuda-test-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    const std::string command = std::string(folder) + "/cuda-checkpoint";
    std::ofstream(command) << "#!/bin/sh\necho --action --device-map\n";
    std::filesystem::permissions(command, std::filesystem::perms::owner_all);
    CommandBackend none(command, folder, std::string(folder) + "/nobody");
    auto nothing = ask_devices(none, kDeadline);
    ASSERT_TRUE(nothing) << nothing.error().text();
    EXPECT_THAT(about(*nothing, ErrorKind::kConflict).line(), HasSubstr("whether there is memory enough was not looked at"));
    EXPECT_EQ(none.ask(request_for(Operation::kUsage, 12), kDeadline, -1)->code, kNotSupported);
    CommandBackend told(command, folder, made_teller(folder, two_devices()));
    auto devices = ask_devices(told, kDeadline);
    ASSERT_TRUE(devices) << devices.error().text();
    EXPECT_THAT(about(*devices, ErrorKind::kConflict).line(), HasSubstr("is of CUDA 13.4 and has 2 devices"));
    EXPECT_EQ(told.ask(request_for(Operation::kUsage, 12), kDeadline, -1)->device_count, 2u);
    std::ofstream(command) << "#!/bin/sh\necho --action\n";
    EXPECT_EQ(ask_devices(told, kDeadline)->value, kBaseVersion) << "one that knows no maps";
    Answer old = two_devices();
    old.value = 12000;
    (void)made_teller(folder, old);
    EXPECT_THAT(ask_devices(told, kDeadline).error().line(), HasSubstr("it is of CUDA 12.0"));
    std::filesystem::remove_all(folder);
}

TEST(CudaHelper, OneThatDoesNotAnswerIsNoHelper) {
    using Clock = std::chrono::steady_clock;
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    ScopedFd ours(ends[0]);
    ScopedFd theirs(ends[1]);
    EXPECT_FALSE(HelperBackend::answers(ours.get(), Clock::now() + milliseconds(50))) << "nobody accepts";
    const Answer answer;
    ASSERT_EQ(send(theirs.get(), &answer, sizeof(answer), 0), static_cast<ssize_t>(sizeof(answer)));
    EXPECT_TRUE(HelperBackend::answers(ours.get(), Clock::now() + std::chrono::minutes(1)));
    theirs.reset();
    EXPECT_FALSE(HelperBackend::answers(ours.get(), Clock::now() + std::chrono::minutes(1))) << "it has ended";
}

}  // namespace
}  // namespace checkpointd::cuda
