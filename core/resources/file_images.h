// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Everything that the images say about open files, as one value: the dump fills it, the restore plans
// from it, and between the two it may be written and read.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "images/proto/files.pb.h"
#include "images/proto/memory.pb.h"

namespace checkpointd {

// What waits in a pipe or FIFO.
struct PipeContent {
    std::string bytes;
    std::vector<uint32_t> packets;  // sizes, where written in packet mode
    uint32_t size = 0;              // F_GETPIPE_SZ; 0: unknown
};

// A file that has no name any more. The dump holds a descriptor of it until it is written; the restore
// reads the image by itself.
struct GhostFile {
    images::ghost_file_entry entry;
    std::shared_ptr<ScopedFd> source;  // dump
    uint64_t data_offset = 0;          // restore: where the content starts in ghost-file-ID.img
    struct Chunk {
        uint64_t offset = 0;       // in the file
        uint64_t length = 0;
        uint64_t data_offset = 0;  // in the image
    };
    std::vector<Chunk> chunks;
};

struct FileImages {
    std::vector<images::file_entry> files;                             // files.img
    std::map<uint32_t, std::vector<images::fdinfo_entry>> tables;      // fdinfo-ID.img by files id
    std::map<pid_t, images::fs_entry> fs;                              // fs-PID.img
    std::vector<images::remap_file_path_entry> remaps;                 // remap-fpath.img
    std::map<uint32_t, uint32_t> ghost_of;                             // file id -> ghost id, from remaps
    std::map<uint32_t, GhostFile> ghosts;                              // ghost-file-ID.img
    std::map<uint32_t, PipeContent> pipes;                             // pipes-data.img by pipe id
    std::map<uint32_t, PipeContent> fifos;                             // fifo-data.img by pipe id
    std::map<uint32_t, std::vector<std::string>> queues;               // sk-queues.img by file id
    std::vector<images::memfd_inode_entry> memfds;                     // memfd.img
    std::vector<images::file_lock_entry> locks;                        // filelocks.img
};

}  // namespace checkpointd
