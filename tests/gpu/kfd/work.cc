// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the device does by itself: it takes packets from the rings of queues that are not evicted.
#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/gpu/kfd/layout.h"
#include "tests/gpu/kfd/state.h"

namespace checkpointd::kfd_emulation {

namespace {

constexpr uint64_t kPiece = 1 << 20;

}  // namespace

size_t State::run_queues() {
    const std::lock_guard lock(mutex_);
    size_t done = 0;
    for (auto& [pid, process] : processes_) {
        if (process->evicted != 0 || process->ended)
            continue;
        for (auto& [id, queue] : process->queues)
            done += run_packet(*process, queue) ? 1 : 0;
    }
    return done;
}

// Pointers count packets. Whatever becomes of one, the next is looked at.
bool State::run_packet(Process& process, Queue& queue) {
    uint64_t read = 0;
    uint64_t written = 0;
    const PrivateQueue& about = queue.about;
    const uint64_t slots = about.ring_size / sizeof(WorkPacket);
    WorkPacket packet;
    if (slots == 0 ||
        !options_.read_memory(process.pid, about.read_pointer_address, &read, sizeof read) ||
        !options_.read_memory(process.pid, about.write_pointer_address, &written, sizeof written) ||
        read == written)
        return false;
    const bool good =
        options_.read_memory(process.pid, about.ring_address + read % slots * sizeof packet,
                             &packet, sizeof packet) &&
        execute(process, queue, packet);
    ++(good ? queue.packets_done : queue.packets_failed);
    ++read;
    options_.write_memory(process.pid, about.read_pointer_address, &read, sizeof read);
    const auto event = process.events.find(packet.event_id);
    if (event != process.events.end())
        event->second.about.signalled = 1;
    return true;
}

bool State::execute(Process& process, const Queue& queue, const WorkPacket& packet) {
    std::vector<uint64_t> numbers;
    for (uint64_t done = 0; done < packet.size; done += numbers.size() * sizeof(uint64_t)) {
        numbers.resize(std::min(packet.size - done, kPiece) / sizeof(uint64_t));
        const uint64_t from =
            packet.operation == WorkPacket::kCopy ? packet.source : packet.destination;
        const uint64_t bytes = numbers.size() * sizeof(uint64_t);
        if (bytes == 0 || !access(process, queue.gpu, from + done, numbers.data(), bytes, false))
            return false;
        if (packet.operation == WorkPacket::kAdd)
            for (uint64_t& number : numbers)
                number += packet.value;
        if (!access(process, queue.gpu, packet.destination + done, numbers.data(), bytes, true))
            return false;
    }
    return true;
}

BufferObject* State::find_address(Process& process, size_t gpu, uint64_t address, uint64_t size) {
    for (Process::Device& device : process.devices)
        for (auto& [handle, object] : device.buffers)
            if (object.mapped.count(gpu) != 0 && address >= object.address && size <= object.size &&
                address - object.address <= object.size - size)
                return &object;
    return nullptr;
}

// What is mapped on this GPU; all else is a page fault of the device.
bool State::access(Process& process, size_t gpu, uint64_t address, void* data, uint64_t size,
                   bool write) {
    BufferObject* object = find_address(process, gpu, address, size);
    if (object == nullptr || (write && (object->flags & KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE) == 0))
        return false;
    const uint64_t offset = address - object->address;
    if ((object->flags & KFD_IOC_ALLOC_MEM_FLAGS_USERPTR) != 0)
        return write ? options_.write_memory(process.pid, object->user_address + offset, data, size)
                     : options_.read_memory(process.pid, object->user_address + offset, data, size);
    if (object->memory == nullptr)
        return false;
    if (options_.access_mapped && can_be_mapped(*object))
        return options_.access_mapped(gpus_[object->gpu].render_minor, object->mmap_offset + offset,
                                      data, size, write);
    std::byte* memory = object->memory->data() + offset;
    std::memcpy(write ? static_cast<void*>(memory) : data,
                write ? data : static_cast<void*>(memory), size);
    return true;
}

}  // namespace checkpointd::kfd_emulation
