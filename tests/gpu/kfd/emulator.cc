// SPDX-License-Identifier: LGPL-2.1-or-later
//
// kfd-emulator FOLDER CPUS GPU_ID:MINOR:MIB[:HIVE[:DEVICE_ID]]...
//
// Serves the emulated devices as a file system at FOLDER until it is unmounted or ends. See
// README.md.
#define FUSE_USE_VERSION 312
#include <fcntl.h>
#include <fmt/format.h>
#include <fuse_lowlevel.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "tests/gpu/kfd/file_system.h"
#include "tests/gpu/kfd/fuse_caller.h"
#include "tests/gpu/kfd/render_file.h"

namespace checkpointd::kfd_emulation {
namespace {

constexpr double kForever = 3600;
constexpr auto kTick = std::chrono::milliseconds(2);
constexpr unsigned kMostThreads = 200;  // one that waits for the driver may be served by another

FileSystem& files_of(fuse_req_t request) {
    return *static_cast<FileSystem*>(fuse_req_userdata(request));
}

FuseCaller caller_of(fuse_req_t request) {
    return {&files_of(request), fuse_req_ctx(request)->pid,
            [request] { return fuse_req_interrupted(request) != 0; }};
}

struct stat about(const FileSystem::Entry& entry) {
    struct stat status {};
    status.st_ino = entry.inode;
    status.st_mode = entry.is_folder ? S_IFDIR | 0755 : S_IFREG | 0666;
    status.st_nlink = 1;
    status.st_size = static_cast<off_t>(entry.size);
    return status;
}

bool is_dmabuf(uint64_t inode) {
    return inode >= FileSystem::kDmabuf && inode < FileSystem::kFolder;
}

bool is_render(uint64_t inode) {
    return inode > FileSystem::kRender && inode < FileSystem::kKfd;
}

void lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
    const auto entry = files_of(request).find_child(parent, name);
    if (!entry) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    fuse_entry_param out{};
    out.ino = entry->inode;
    out.attr = about(*entry);
    out.attr_timeout = out.entry_timeout = is_dmabuf(entry->inode) ? 0 : kForever;
    fuse_reply_entry(request, &out);
}

void getattr(fuse_req_t request, fuse_ino_t inode, fuse_file_info*) {
    const auto entry = files_of(request).find(inode);
    if (!entry) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    const struct stat status = about(*entry);
    fuse_reply_attr(request, &status, kForever);
}

// Times, modes, truncation: agreed to, and nothing happens, as with a device.
void setattr(fuse_req_t request, fuse_ino_t inode, struct stat*, int, fuse_file_info* file) {
    getattr(request, inode, file);
}

void readdir(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, fuse_file_info*) {
    const auto all = files_of(request).children(inode);
    std::vector<char> out(size);
    size_t used = 0;
    for (auto i = static_cast<size_t>(offset); i < all.size(); ++i) {
        const struct stat status = about(all[i]);
        const size_t needed =
            fuse_add_direntry(request, out.data() + used, size - used, all[i].name.c_str(), &status,
                              static_cast<off_t>(i + 1));
        if (needed > size - used)
            break;
        used += needed;
    }
    fuse_reply_buf(request, out.data(), used);
}

int open_file(fuse_req_t request, fuse_ino_t inode, fuse_file_info* file) {
    FileSystem& files = files_of(request);
    if (is_dmabuf(inode)) {
        file->direct_io = 1;
        return files.open_dmabuf(inode, (file->flags & O_ACCMODE) != O_RDONLY);
    }
    file->direct_io = inode == FileSystem::kControl ? 1 : 0;
    file->keep_cache = 1;
    if (inode == FileSystem::kControl)  // one text, however often it is read
        file->fh = reinterpret_cast<uintptr_t>(new std::string(files.control_text()));
    if (is_render(inode))
        file->fh = reinterpret_cast<uintptr_t>(new RenderFile);
    if (inode != FileSystem::kKfd)
        return 0;
    auto opened = std::make_unique<State::File>();
    const int error = files.open_kfd(caller_of(request), opened.get());
    if (error == 0)
        file->fh = reinterpret_cast<uintptr_t>(opened.release());
    return error;
}

void open(fuse_req_t request, fuse_ino_t inode, fuse_file_info* file) {
    if (const int error = open_file(request, inode, file); error != 0)
        fuse_reply_err(request, -error);
    else
        fuse_reply_open(request, file);
}

void release(fuse_req_t request, fuse_ino_t inode, fuse_file_info* file) {
    if (inode == FileSystem::kKfd)
        delete reinterpret_cast<State::File*>(file->fh);
    if (is_render(inode))
        delete reinterpret_cast<RenderFile*>(file->fh);
    if (inode == FileSystem::kControl)
        delete reinterpret_cast<std::string*>(file->fh);
    if (is_dmabuf(inode))
        files_of(request).release_dmabuf(inode);
    fuse_reply_err(request, 0);
}

void read_text(fuse_req_t request, const std::string& text, size_t size, off_t offset) {
    const auto from = std::min(static_cast<size_t>(offset), text.size());
    fuse_reply_buf(request, text.data() + from, std::min(size, text.size() - from));
}

void read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, fuse_file_info* file) {
    FileSystem& files = files_of(request);
    if (inode == FileSystem::kControl) {
        read_text(request, *reinterpret_cast<std::string*>(file->fh), size, offset);
        return;
    }
    if (const auto entry = files.find(inode); entry && !entry->text.empty()) {
        read_text(request, entry->text, size, offset);
        return;
    }
    std::vector<char> out(size);
    const int error = is_dmabuf(inode) ? files.state().fault_of_copy("copy-from") : 0;
    const int64_t count =
        error != 0 ? -error : files.read(inode, static_cast<uint64_t>(offset), out.data(), size);
    if (count < 0)
        fuse_reply_err(request, static_cast<int>(-count));
    else
        fuse_reply_buf(request, out.data(), static_cast<size_t>(count));
}

void write(fuse_req_t request, fuse_ino_t inode, const char* data, size_t size, off_t offset,
           fuse_file_info*) {
    FileSystem& files = files_of(request);
    int64_t count = 0;
    if (inode == FileSystem::kControl)
        count = files.control({data, size}) ? static_cast<int64_t>(size) : -EINVAL;
    else if (const int error = is_dmabuf(inode) ? files.state().fault_of_copy("copy-to") : 0;
             error != 0)
        count = -error;
    else
        count = files.write(inode, static_cast<uint64_t>(offset), data, size);
    if (count < 0)
        fuse_reply_err(request, static_cast<int>(-count));
    else
        fuse_reply_write(request, static_cast<size_t>(count));
}

void fsync(fuse_req_t request, fuse_ino_t, int, fuse_file_info*) {
    fuse_reply_err(request, 0);
}

int call(fuse_req_t request, fuse_ino_t inode, unsigned command, uint64_t opened, void* data) {
    const FuseCaller caller = caller_of(request);
    if (is_render(inode))
        return reinterpret_cast<RenderFile*>(opened)->ioctl(caller, command, data);
    return files_of(request).state().ioctl(*reinterpret_cast<State::File*>(opened), caller, command,
                                           data);
}

// On an ordinary file the kernel copies as many bytes in and out as the command says.
void ioctl(fuse_req_t request, fuse_ino_t inode, unsigned command, void*, fuse_file_info* file,
           unsigned, const void* in, size_t in_size, size_t out_size) {
    if (inode != FileSystem::kKfd && !is_render(inode)) {
        fuse_reply_err(request, ENOTTY);
        return;
    }
    std::vector<char> data(std::max<size_t>({in_size, out_size, _IOC_SIZE(command), 8}));
    std::memcpy(data.data(), in, in_size);
    const int error = call(request, inode, command, file->fh, data.data());
    if (error != 0)
        fuse_reply_err(request, -error);
    else
        fuse_reply_ioctl(request, 0, data.data(), out_size);
}

// Pages one by one: what lies behind a buffer object may become another one.
void init(void*, fuse_conn_info* connection) {
    connection->max_readahead = 0;
    connection->want &= ~static_cast<unsigned>(FUSE_CAP_AUTO_INVAL_DATA);
}

fuse_lowlevel_ops operations() {
    fuse_lowlevel_ops all{};
    all.init = init;
    all.lookup = lookup;
    all.getattr = getattr;
    all.setattr = setattr;
    all.readdir = readdir;
    all.open = open;
    all.release = release;
    all.read = read;
    all.write = write;
    all.fsync = fsync;
    all.ioctl = ioctl;
    return all;
}

// The device: by itself, beside the calls.
void work(FileSystem* files, const std::atomic<bool>* stop) {
    while (!*stop)
        if (!files->tick())
            std::this_thread::sleep_for(kTick);
}

int serve(fuse_session* session, FileSystem* files, const char* folder) {
    if (fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, folder) != 0)
        return EXIT_FAILURE;
    std::atomic<bool> stop = false;
    std::thread device(work, files, &stop);
    fuse_loop_config* config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_max_threads(config, kMostThreads);
    const int error = fuse_session_loop_mt(session, config);
    fuse_loop_cfg_destroy(config);
    stop = true;
    fuse_session_unmount(session);
    device.join();
    return error == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int run(int argc, char** argv) {
    if (argc < 3) {
        fmt::print(stderr,
                   "usage: kfd-emulator FOLDER CPUS GPU_ID:MINOR:MIB[:HIVE[:DEVICE_ID]]...\n");
        return EXIT_FAILURE;
    }
    const auto machine =
        Machine::parse({argv + 3, argv + argc}, static_cast<uint32_t>(std::atoi(argv[2])));
    auto pages = PageCache::start(argv[1]);
    if (!machine || !pages) {
        fmt::print(stderr, "kfd-emulator: {}\n",
                   machine ? pages.error().line() : machine.error().line());
        return EXIT_FAILURE;
    }
    FileSystem files(*machine, &*pages);
    char name[] = "kfd-emulator";
    char option[] = "-oallow_other,default_permissions,fsname=kfd-emulated";
    char* words[] = {name, option, nullptr};
    fuse_args args = FUSE_ARGS_INIT(2, words);
    const fuse_lowlevel_ops all = operations();
    fuse_session* session = fuse_session_new(&args, &all, sizeof all, &files);
    fuse_opt_free_args(&args);
    if (session == nullptr)
        return EXIT_FAILURE;
    const int status = serve(session, &files, argv[1]);
    fuse_session_destroy(session);
    return status;
}

}  // namespace
}  // namespace checkpointd::kfd_emulation

int main(int argc, char** argv) {
    return checkpointd::kfd_emulation::run(argc, argv);
}
