// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <functional>
#include <map>
#include <optional>

#include "core/base/error.h"
#include "core/restore/forest_images.h"
#include "core/restore/host_facts.h"
#include "core/restore/program/plan.h"

namespace checkpointd {

// Where the agent has the files of mappings open, by vma_entry.shmid / mm_entry.exe_file_id.
using FileSlots = std::function<Result<Slot>(uint32_t file_id)>;

// Where a plugin's mapping comes from, known when the task has asked the plugin.
struct PluginMapping {
    Slot fd;
    Slot offset;
};
using PluginMappings = std::map<uint64_t, PluginMapping>;  // of one task, by their start

// A hole in the address space of every restored task and of ourselves.
Result<uint64_t> free_place(const ForestImages& forest, const std::vector<ProcMapping>& own,
                            uint64_t size);

// Plans address spaces: shared segments in the agent, everything else in the tasks' blob programs.
class MemoryPlanner {
  public:
    // Borrowed, must outlive the planner. `image_dir` and `proc` are descriptors in the agent.
    MemoryPlanner(const images::ImageDir& dir, const ForestImages& forest, const HostFacts& facts,
                  Program& agent, Slot image_dir, Slot proc)
        : dir_(dir), forest_(forest), facts_(facts), agent_(agent), image_dir_(image_dir),
          proc_(proc) {}

    // What the tasks cannot get back, all at once.
    void check(std::vector<Error>& blockers);
    // Bytes of address space that plan_agent() needs for shared segments.
    uint64_t window_size() const;
    // Opens pages files and makes the shared segments, the first at address `window`.
    Result<void> plan_agent(uint64_t window);
    // Replaces a task's memory.
    Result<void> plan_task(const TaskRecord& task, Program& blob, const FileSlots& files,
                           const PluginMappings& of_plugins);
    // Fills `fd` (a memfd, in the agent) with the pages of a shared segment.
    Result<void> fill_memfd(uint32_t shmid, uint64_t size, Slot fd, Program& agent);
    // Where the agent has a shared segment open, after plan_agent().
    std::optional<Slot> segment(uint64_t shmid) const {
        auto found = segments_.find(shmid);
        return found == segments_.end() ? std::nullopt : std::optional(found->second.file);
    }

    uint64_t bytes() const { return bytes_; }

  private:
    // What becomes of the pages from an address on, up to `until`.
    struct Stretch {
        uint64_t until = 0;
        bool wanted = false;
    };
    using Sorter = std::function<Stretch(uint64_t address)>;
    struct Segment {
        uint64_t size = 0;
        Slot file;
    };

    void check_task(const TaskRecord& task, std::vector<Error>& blockers);
    void check_vdso(const TaskRecord& task, std::vector<Error>& blockers);
    Result<void> compare_vdso(const TaskRecord& task, const images::vma_entry& vdso);
    Result<Slot> pages_file(uint32_t pages_id);
    Result<void> check_size(const PageRuns& pages) const;
    Result<void> plan_segment(uint64_t shmid, Segment& segment, uint64_t address);
    Result<void> map(const TaskRecord& task, const images::vma_entry& vma, Program& blob,
                     const FileSlots& files, const PluginMappings& of_plugins);
    Result<void> read_private_pages(const TaskRecord& task, Program& blob);
    Result<void> read_runs(const std::string& label, Program& program, const PageRuns& pages,
                           uint64_t base, const Sorter& sort);
    void copy_to_memfd(const std::string& label, Slot file, uint64_t from, Slot fd, uint64_t to,
                       uint64_t length, Program& agent);
    void settle(const TaskRecord& task, const images::vma_entry& vma, Program& blob);
    Result<void> describe_layout(const TaskRecord& task, Program& blob, const FileSlots& files);

    const images::ImageDir& dir_;
    const ForestImages& forest_;
    const HostFacts& facts_;
    Program& agent_;
    Slot image_dir_;
    Slot proc_;
    std::map<uint64_t, Segment> segments_;
    std::map<uint32_t, Slot> pages_files_;
    uint64_t bytes_ = 0;
};

}  // namespace checkpointd
