// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/device_map.h"

#include <algorithm>

#include "plugins/cuda/devices.h"
#include "plugins/cuda/uuid.h"

namespace checkpointd::cuda {
namespace {

// Pairs are made in the order of who has the first claim.
class MapMaker {
  public:
    MapMaker(const std::vector<GpuPair>& map, const Answer& here) : map_(map), here_(here) {}

    // Each of those that were used, by the map or where it was; whether it is here is not asked.
    void place_used(const WantedDevice& device) {
        const Uuid to = device_for(device.uuid, map_);
        const auto taken = std::find_if(made_.pairs.begin(), made_.pairs.end(), [&](const GpuPair& pair) { return pair.to == to; });
        if (taken != made_.pairs.end())
            made_.blockers.push_back({ErrorKind::kBadInput, to_string(to),
                                      fmt::format("would have to take what was on {} and on {}", to_string(taken->from),
                                                  to_string(device.uuid)),
                                      "give each device of the image its own in plugins: {cuda: {device-map: GPU-OLD=GPU-NEW,...}}",
                                      0, {}});
        place(device, to);
        has_moves_ |= to != device.uuid;
    }
    void place_unused(const WantedDevice& device) {
        const Uuid wish = device_for(device.uuid, map_);
        std::vector<Uuid> choices{wish, device.uuid};
        for (uint32_t i = 0; i < here_.device_count; ++i)
            choices.push_back(here_.devices[i].uuid);
        const auto to = std::find_if(choices.begin(), choices.end(), [&](const Uuid& uuid) { return is_free(uuid); });
        if (to == choices.end())
            return;
        place(device, *to);
        has_moves_ |= *to == wish && wish != device.uuid;
    }
    // That one which was not used is not here is no reason for a map.
    CompleteMap finish() && {
        if (!has_moves_)
            made_.pairs.clear();
        return std::move(made_);
    }

  private:
    void place(const WantedDevice& device, const Uuid& to) { made_.pairs.push_back({device.uuid, to}); }
    // Where nobody tells which devices are here, all are.
    bool is_free(const Uuid& uuid) const {
        return (here_.device_count == 0 || find_device(here_, uuid) != nullptr) &&
               std::none_of(made_.pairs.begin(), made_.pairs.end(), [&](const GpuPair& pair) { return pair.to == uuid; });
    }

    const std::vector<GpuPair>& map_;
    const Answer& here_;
    CompleteMap made_;
    bool has_moves_ = false;
};

}  // namespace

CompleteMap complete_map(const std::vector<WantedDevice>& image, const std::vector<GpuPair>& map, const Answer& here) {
    MapMaker maker(map, here);
    for (const WantedDevice& device : image)
        if (device.bytes != 0)
            maker.place_used(device);
    for (const WantedDevice& device : image)
        if (device.bytes == 0)
            maker.place_unused(device);
    return std::move(maker).finish();
}

}  // namespace checkpointd::cuda
