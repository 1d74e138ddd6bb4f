// SPDX-License-Identifier: LGPL-2.1-or-later
#include "images/records.h"

#include <memory>

#include "images/proto/cgroup.pb.h"
#include "images/proto/common.pb.h"
#include "images/proto/core.pb.h"
#include "images/proto/cpuinfo.pb.h"
#include "images/proto/files.pb.h"
#include "images/proto/inventory.pb.h"
#include "images/proto/memory.pb.h"
#include "images/proto/mounts.pb.h"
#include "images/proto/namespaces.pb.h"
#include "images/proto/network.pb.h"
#include "images/proto/security.pb.h"
#include "images/proto/sockets.pb.h"
#include "images/proto/stats.pb.h"
#include "images/proto/tasks.pb.h"
#include "images/proto/tty.pb.h"

namespace checkpointd::images {

namespace {

using google::protobuf::MessageLite;
using MessagePtr = std::unique_ptr<MessageLite>;

// The message of all records of a type, but for heads and for what follows a head.
MessagePtr plain_message(ImageType type) {
    switch (type) {
        case ImageType::kInventory: return std::make_unique<inventory_entry>();
        case ImageType::kPstree: return std::make_unique<pstree_entry>();
        case ImageType::kCore: return std::make_unique<core_entry>();
        case ImageType::kIds: return std::make_unique<task_kobj_ids_entry>();
        case ImageType::kMm: return std::make_unique<mm_entry>();
        case ImageType::kFs: return std::make_unique<fs_entry>();
        case ImageType::kFdinfo: return std::make_unique<fdinfo_entry>();
        case ImageType::kFiles: return std::make_unique<file_entry>();
        case ImageType::kPagemap: return std::make_unique<pagemap_entry>();
        case ImageType::kPagemapShmem: return std::make_unique<pagemap_entry>();
        case ImageType::kPipesData: return std::make_unique<pipe_data_entry>();
        case ImageType::kFifoData: return std::make_unique<pipe_data_entry>();
        case ImageType::kSkQueues: return std::make_unique<sk_packet_entry>();
        case ImageType::kRemapFpath: return std::make_unique<remap_file_path_entry>();
        case ImageType::kGhostFile: return std::make_unique<ghost_chunk_entry>();
        case ImageType::kMemfd: return std::make_unique<memfd_inode_entry>();
        case ImageType::kTtyInfo: return std::make_unique<tty_info_entry>();
        case ImageType::kTtyData: return std::make_unique<tty_data_entry>();
        case ImageType::kFileLocks: return std::make_unique<file_lock_entry>();
        case ImageType::kTcpStream: return std::make_unique<tcp_stream_entry>();
        case ImageType::kSeccomp: return std::make_unique<seccomp_entry>();
        case ImageType::kCgroup: return std::make_unique<cgroup_entry>();
        case ImageType::kTimens: return std::make_unique<timens_entry>();
        case ImageType::kUserns: return std::make_unique<userns_entry>();
        case ImageType::kUtsns: return std::make_unique<utsns_entry>();
        case ImageType::kPidns: return std::make_unique<pidns_entry>();
        case ImageType::kIpcVar: return std::make_unique<ipc_var_entry>();
        case ImageType::kIpcShm: return std::make_unique<ipc_shm_entry>();
        case ImageType::kIpcMsg: return std::make_unique<ipc_msg>();
        case ImageType::kIpcSem: return std::make_unique<ipc_sem_entry>();
        case ImageType::kMountpoints: return std::make_unique<mnt_entry>();
        case ImageType::kAutofs: return std::make_unique<autofs_entry>();
        case ImageType::kBinfmtMisc: return std::make_unique<binfmt_misc_entry>();
        case ImageType::kNetdev: return std::make_unique<net_device_entry>();
        case ImageType::kNetns: return std::make_unique<netns_entry>();
        case ImageType::kApparmor: return std::make_unique<apparmor_entry>();
        case ImageType::kBpfmapData: return std::make_unique<bpfmap_data_entry>();
        case ImageType::kCpuinfo: return std::make_unique<cpuinfo_entry>();
        case ImageType::kStatsDump: return std::make_unique<stats_entry>();
        case ImageType::kStatsRestore: return std::make_unique<stats_entry>();
        case ImageType::kIrmapCache: return std::make_unique<irmap_cache_entry>();
        case ImageType::kTasks: return std::make_unique<process_extra_entry>();
        case ImageType::kPages:
        case ImageType::kTmpfsDev:
        case ImageType::kIfaddr:
        case ImageType::kRoute:
        case ImageType::kRoute6:
        case ImageType::kRule:
        case ImageType::kIptables:
        case ImageType::kIp6tables:
        case ImageType::kNftables:
        case ImageType::kConntrack:
        case ImageType::kExpectations: return nullptr;
    }
    return nullptr;
}

uint64_t round_up(uint64_t size, uint64_t unit) {
    uint64_t over = size % unit;
    // Sizes near 2^64 stay as they are: no file is that long, so that they are refused as they are.
    return over == 0 || size > UINT64_MAX - unit ? size : size + unit - over;
}

// Knows which message comes next and how many raw bytes follow it.
class Walker {
  public:
    Walker(ImageType type, const ImageReader& reader) : type_(type), reader_(reader) {}

    MessagePtr next_message() const {
        if (type_ == ImageType::kIpcMsg && queued_ == 0)
            return std::make_unique<ipc_msg_entry>();
        if (count_ == 0 && image_type(type_).shape == ImageShape::kHeadMany)
            return std::make_unique<pagemap_head>();
        if (count_ == 0 && type_ == ImageType::kGhostFile)
            return std::make_unique<ghost_file_entry>();
        return plain_message(type_);
    }

    uint64_t payload_of(const MessageLite& record) {
        ++count_;
        switch (type_) {
            case ImageType::kPipesData:
            case ImageType::kFifoData: return as<pipe_data_entry>(record).bytes();
            case ImageType::kSkQueues: return as<sk_packet_entry>(record).length();
            case ImageType::kTcpStream: return tcp_queues(as<tcp_stream_entry>(record));
            case ImageType::kGhostFile: return ghost_bytes(record);
            case ImageType::kIpcShm: return segment_bytes(as<ipc_shm_entry>(record));
            case ImageType::kIpcSem: return round_up(2ull * as<ipc_sem_entry>(record).nsems(), 8);
            case ImageType::kIpcMsg: return message_bytes(record);
            case ImageType::kBpfmapData: return map_bytes(as<bpfmap_data_entry>(record));
            default: return 0;
        }
    }

  private:
    // next_message() made it, so its type is known.
    template <typename Message>
    static const Message& as(const MessageLite& record) {
        return static_cast<const Message&>(record);
    }

    static uint64_t tcp_queues(const tcp_stream_entry& entry) {
        return uint64_t{entry.inq_len()} + entry.outq_len();
    }
    static uint64_t map_bytes(const bpfmap_data_entry& entry) {
        return uint64_t{entry.keys_bytes()} + entry.values_bytes();
    }
    static uint64_t segment_bytes(const ipc_shm_entry& entry) {
        return entry.in_pagemaps() ? 0 : round_up(entry.size(), 4);
    }
    uint64_t ghost_bytes(const MessageLite& record) const {
        if (count_ > 1)
            return as<ghost_chunk_entry>(record).len();
        return as<ghost_file_entry>(record).chunks() ? 0 : reader_.remaining();
    }
    uint64_t message_bytes(const MessageLite& record) {
        if (queued_ == 0) {
            queued_ = as<ipc_msg_entry>(record).qnum();
            return 0;
        }
        --queued_;
        return round_up(as<ipc_msg>(record).msize(), 8);
    }

    ImageType type_;
    const ImageReader& reader_;
    uint64_t count_ = 0;
    uint64_t queued_ = 0;  // messages that the queue read last still has
};

Result<void> check_count(const ImageReader& reader, ImageType type, uint64_t count) {
    ImageShape shape = image_type(type).shape;
    if (shape == ImageShape::kOne && count != 1)
        return tl::unexpected(reader.bad(fmt::format("{} records where one belongs", count)));
    if ((shape == ImageShape::kHeadMany || type == ImageType::kGhostFile) && count == 0)
        return tl::unexpected(reader.bad("the first record is missing"));
    return {};
}

}  // namespace

Result<void> visit_records(ImageReader& reader, ImageType type, const RecordVisitor& visit) {
    Walker walker(type, reader);
    for (uint64_t count = 0;; ++count) {
        MessagePtr record = walker.next_message();
        if (!record)
            return fail(ErrorKind::kBadInput, reader.name(), "a file of this type has no records");
        CKPT_ASSIGN(bool there, reader.next(*record));
        if (!there)
            return check_count(reader, type, count);
        uint64_t size = walker.payload_of(*record);
        CKPT_ASSIGN(std::string payload, reader.payload(size));
        CKPT_TRY(visit(*record, payload));
    }
}

}  // namespace checkpointd::images
