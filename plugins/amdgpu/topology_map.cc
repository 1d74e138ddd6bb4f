// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/topology_map.h"

#include <algorithm>
#include <functional>

namespace checkpointd::amdgpu {
namespace {

enum class Fit { kSame, kNotLess };

struct Property {
    const char* name;
    uint64_t Node::*field;
    Fit fit = Fit::kSame;
    bool MapRules::*rule = nullptr;
};

constexpr Property kProperties[] = {
    {"vendor_id", &Node::vendor_id},
    {"device_id", &Node::device_id},
    {"simd_count", &Node::simd_count},
    {"mem_banks_count", &Node::mem_banks_count},
    {"io_links_count", &Node::io_links_count},
    {"max_waves_per_simd", &Node::max_waves_per_simd},
    {"lds_size_in_kb", &Node::lds_size_in_kb},
    {"wave_front_size", &Node::wave_front_size},
    {"array_count", &Node::array_count},
    {"simd_arrays_per_engine", &Node::simd_arrays_per_engine},
    {"cu_per_simd_array", &Node::cu_per_simd_array},
    {"simd_per_cu", &Node::simd_per_cu},
    {"max_slots_scratch_cu", &Node::max_slots_scratch_cu},
    {"num_sdma_engines", &Node::num_sdma_engines},
    {"num_sdma_xgmi_engines", &Node::num_sdma_xgmi_engines},
    {"num_sdma_queues_per_engine", &Node::num_sdma_queues_per_engine},
    {"num_cp_queues", &Node::num_cp_queues},
    {"vram_public", &Node::vram_public},
    {"capability", &Node::capability, Fit::kSame, &MapRules::capability},
    {"vram_size", &Node::vram_size, Fit::kNotLess, &MapRules::vram_size},
    {"num_gws", &Node::num_gws, Fit::kNotLess, &MapRules::gws},
    {"caches_count", &Node::caches_count, Fit::kNotLess, &MapRules::caches},
    {"fw_version", &Node::fw_version, Fit::kNotLess, &MapRules::firmware},
    {"sdma_fw_version", &Node::sdma_fw_version, Fit::kNotLess, &MapRules::sdma_firmware},
};

// A machine has at most some dozens of GPUs, and most search comes to its end at once. One that
// does not is given up.
constexpr int kMostSteps = 1000000;

size_t valid_links(const Topology& topology, const Node& node) {
    return static_cast<size_t>(
        std::count_if(node.links.begin(), node.links.end(),
                      [&](const Link& link) { return topology.is_valid(link); }));
}

bool fits(const Property& property, const Node& wanted, const Node& offered,
          const MapRules& rules) {
    if (property.rule != nullptr && !(rules.*property.rule))
        return true;
    const uint64_t want = wanted.*property.field;
    const uint64_t have = offered.*property.field;
    return property.fit == Fit::kSame ? have == want : have >= want;
}

// Why one GPU cannot take the place of the other; empty: it can, as far as it alone is looked at.
std::string misfit(const Node& wanted, const Node& offered, const MapRules& rules) {
    auto pair = rules.wanted.find(wanted.gpu_id);
    if (pair != rules.wanted.end() && pair->second != offered.gpu_id)
        return "is not the one that device-map names";
    for (const Property& property : kProperties)
        if (!fits(property, wanted, offered, rules))
            return fmt::format("{} is {}, {} {} wanted", property.name, offered.*property.field,
                               wanted.*property.field,
                               property.fit == Fit::kSame ? "is" : "or more is");
    return {};
}

// Whether `here` may stand for `there`; both lead to a CPU.
bool replaces(const Topology& image, const Node& from, const Link& there, const Topology& local,
              const Node& to, const Link& here) {
    if (there.type == kXgmiLink && here.type != kXgmiLink)
        return false;
    return !image.has_link(there.to_node, there.type, from.id) ||
           local.has_link(here.to_node, here.type, to.id);
}

class Search {
  public:
    Search(const Topology& image, const Topology& here, const MapRules& rules)
        : image_(image),
          here_(here),
          rules_(rules),
          image_hives_(image.hives()),
          here_hives_(here.hives()) {
        order();
    }

    bool run() { return map_gpu(0); }
    bool gave_up() const { return steps_ > kMostSteps; }
    GpuMap take() { return std::move(gpus_); }

  private:
    using Next = std::function<bool()>;

    // Members of a hive one after another, so that a hive that does not fit is left soon.
    void order() {
        for (const auto& hive : image_hives_)
            for (uint32_t gpu : hive)
                wanted_.push_back(image_.by_gpu_id(gpu));
        for (const Node& node : image_.nodes)
            if (node.is_gpu() && std::find(wanted_.begin(), wanted_.end(), &node) == wanted_.end())
                wanted_.push_back(&node);
        for (const Node& node : here_.nodes)
            if (node.is_gpu())
                offered_.push_back(&node);
    }

    static size_t hive_of(const std::vector<std::vector<uint32_t>>& hives, uint32_t gpu) {
        for (size_t i = 0; i < hives.size(); ++i)
            if (std::find(hives[i].begin(), hives[i].end(), gpu) != hives[i].end())
                return i;
        return hives.size();
    }

    bool is_taken(uint32_t gpu) const {
        return std::any_of(gpus_.begin(), gpus_.end(),
                           [&](const auto& pair) { return pair.second == gpu; });
    }

    // The one with the same number first.
    std::vector<const Node*> candidates(const Node& wanted) const {
        std::vector<const Node*> found;
        for (const Node* offered : offered_)
            if (!is_taken(offered->gpu_id) && misfit(wanted, *offered, rules_).empty() &&
                valid_links(image_, wanted) <= valid_links(here_, *offered))
                found.push_back(offered);
        std::stable_partition(found.begin(), found.end(),
                              [&](const Node* node) { return node->gpu_id == wanted.gpu_id; });
        return found;
    }

    // Two GPUs that XGMI joins are joined again.
    bool keeps_peers(const Node& wanted, const Node& offered) const {
        for (const Link& link : wanted.links) {
            const Node* peer = image_.by_id(link.to_node);
            if (link.type != kXgmiLink || peer == nullptr || !peer->is_gpu() ||
                !gpus_.contains(peer->gpu_id))
                continue;
            if (!here_.has_link(offered.id, kXgmiLink, here_.by_gpu_id(gpus_.at(peer->gpu_id))->id))
                return false;
        }
        return true;
    }

    bool map_gpu(size_t index) {
        if (index == wanted_.size())
            return true;
        const Node& wanted = *wanted_[index];
        for (const Node* offered : candidates(wanted)) {
            if (++steps_ > kMostSteps)
                return false;
            if (!keeps_peers(wanted, *offered))
                continue;
            gpus_[wanted.gpu_id] = offered->gpu_id;
            if (map_hive(wanted, *offered, [&] {
                    return map_links(wanted, *offered, 0, [&] { return map_gpu(index + 1); });
                }))
                return true;
            gpus_.erase(wanted.gpu_id);
        }
        return false;
    }

    bool map_hive(const Node& wanted, const Node& offered, const Next& next) {
        const size_t there = hive_of(image_hives_, wanted.gpu_id);
        const size_t here = hive_of(here_hives_, offered.gpu_id);
        if (there == image_hives_.size())
            return next();
        if (here == here_hives_.size())
            return false;
        return map_pair(hives_, there, here, next);
    }

    // Each link to a CPU in turn.
    bool map_links(const Node& wanted, const Node& offered, size_t index, const Next& next) {
        if (index == wanted.links.size())
            return next();
        const Link& link = wanted.links[index];
        const Node* cpu = image_.by_id(link.to_node);
        auto rest = [&] { return map_links(wanted, offered, index + 1, next); };
        if (cpu == nullptr || cpu->is_gpu())
            return rest();
        for (const Link& other : offered.links) {
            const Node* local = here_.by_id(other.to_node);
            if (local == nullptr || local->is_gpu() ||
                !replaces(image_, wanted, link, here_, offered, other))
                continue;
            if (++steps_ > kMostSteps)
                return false;
            if (!rules_.numa)
                return rest();
            if (map_pair(cpus_, cpu->id, local->id, rest))
                return true;
        }
        return false;
    }

    // Adds a pair to a map that is one to one, or finds it there; takes it away again where `next`
    // fails.
    template <typename Key>
    static bool map_pair(std::map<Key, Key>& map, Key there, Key here, const Next& next) {
        auto known = map.find(there);
        if (known != map.end())
            return known->second == here && next();
        for (const auto& pair : map)
            if (pair.second == here)
                return false;
        map[there] = here;
        if (next())
            return true;
        map.erase(there);
        return false;
    }

    const Topology& image_;
    const Topology& here_;
    const MapRules& rules_;
    std::vector<std::vector<uint32_t>> image_hives_;
    std::vector<std::vector<uint32_t>> here_hives_;
    std::vector<const Node*> wanted_;
    std::vector<const Node*> offered_;
    GpuMap gpus_;
    std::map<uint32_t, uint32_t> cpus_;
    std::map<size_t, size_t> hives_;
    int steps_ = 0;
};

std::string reasons(const Node& wanted, const Topology& here, const MapRules& rules) {
    std::string text;
    for (const Node& node : here.nodes)
        if (const std::string reason = node.is_gpu() ? misfit(wanted, node, rules) : "";
            !reason.empty())
            text +=
                fmt::format("{}of {} {}", text.empty() ? "" : "; ", gpu_name(node.gpu_id), reason);
    return text;
}

bool has_match(const Node& wanted, const Topology& here, const MapRules& rules) {
    return std::any_of(here.nodes.begin(), here.nodes.end(), [&](const Node& node) {
        return node.is_gpu() && misfit(wanted, node, rules).empty();
    });
}

Error no_place(const Node& node, const Topology& here, const MapRules& rules, const char* what) {
    return Error{ErrorKind::kUnsupported,
                 gpu_name(node.gpu_id) + " of the image",
                 fmt::format("{}: {}", what, reasons(node, here, rules)),
                 "checkpointd-policy(5), plugins.amdgpu, says which of these may be let pass",
                 0,
                 {}};
}

Result<void> each_has_a_match(const Topology& image, const Topology& here, const MapRules& rules) {
    std::vector<Error> blockers;
    for (const Node& node : image.nodes)
        if (node.is_gpu() && !has_match(node, here, rules))
            blockers.push_back(no_place(node, here, rules, "has nothing here to take its place"));
    return all_blockers("GPUs", "those of the image do not fit to those here", std::move(blockers));
}

// Each could have one; those that could not have all are told of, and the rest is relations.
Error not_all_at_once(const Topology& image, const Topology& here, const MapRules& rules) {
    Error error{ErrorKind::kUnsupported,
                "GPUs",
                "each of the image has one here that fits, but not all at once",
                {},
                0,
                {}};
    for (const Node& node : image.nodes)
        if (node.is_gpu() && !reasons(node, here, rules).empty())
            error.causes.push_back(no_place(node, here, rules, "cannot take every place"));
    error.causes.push_back({ErrorKind::kUnsupported,
                            "GPUs",
                            "hives (XGMI) stay together, and GPUs that share a CPU do so again",
                            "plugins: {amdgpu: {numa-check: no}} lets the links to CPUs be others",
                            0,
                            {}});
    return error;
}

}  // namespace

Result<GpuMap> map_gpus(const Topology& image, const Topology& here, const MapRules& rules) {
    if (image.gpu_count() != here.gpu_count())
        return fail(ErrorKind::kUnsupported, "GPUs",
                    fmt::format("the image has {}, and {} can be seen here", image.gpu_count(),
                                here.gpu_count()),
                    "KFD restores a process only where it sees as many; DeviceAllow= of the unit "
                    "can hide some");
    CKPT_TRY(each_has_a_match(image, here, rules));
    Search search(image, here, rules);
    if (search.run())
        return search.take();
    if (search.gave_up())
        return fail(ErrorKind::kUnsupported, "GPUs",
                    "there are too many ways to map those of the image to those here",
                    "name the pairs: plugins: {amdgpu: {device-map: 0xOLD=0xNEW,...}}");
    return tl::unexpected(not_all_at_once(image, here, rules));
}

}  // namespace checkpointd::amdgpu
