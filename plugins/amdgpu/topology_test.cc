// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <algorithm>
#include <random>
#include <set>

#include "images/test_dir.h"
#include "plugins/amdgpu/topology_map.h"
#include "plugins/amdgpu/topology_test_util.h"

namespace checkpointd::amdgpu {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

TEST(Topology, ReadsWhatKfdShows) {
    images::TestDir dir;
    Topology made = machine(2, 2);
    made.nodes[3].vram_public = 1;
    join(made, 2, 3, kXgmiLink);
    write_topology(dir.path(), made);
    auto read = read_topology(dir.path());
    ASSERT_TRUE(read) << read.error().text();
    EXPECT_EQ(read->gpu_count(), 2u);
    ASSERT_EQ(read->nodes.size(), 4u);
    for (uint32_t id : {2u, 3u})
        EXPECT_EQ(*read->by_id(id), made.nodes[id]);
    EXPECT_EQ(read->by_render_minor(130)->gpu_id, 0x100u);
    EXPECT_EQ(read->by_gpu_id(0), nullptr);  // that is what a CPU has
    ASSERT_EQ(read->hives().size(), 1u);
    EXPECT_THAT(read->hives()[0], UnorderedElementsAre(0x100u, 0x101u));
}

// Eight GPUs of which a device cgroup shows one: the others have folders and links, but nothing in
// them can be read. They are no CPUs either.
TEST(Topology, LeavesOutWhatIsHidden) {
    images::TestDir dir;
    Topology made = machine(2, 8);
    for (uint32_t one = 2; one < 10; ++one)
        for (uint32_t other = one + 1; other < 10; ++other)
            join(made, one, other, kXgmiLink);
    write_topology(dir.path(), made);
    for (uint32_t id = 2; id < 9; ++id) {
        const std::string file = fmt::format("{}/nodes/{}/gpu_id", dir.path(), id);
        std::filesystem::remove(file);
        std::filesystem::create_directory(file);  // EISDIR: root may read what is forbidden
    }
    auto read = read_topology(dir.path());
    ASSERT_TRUE(read) << read.error().text();
    EXPECT_EQ(read->nodes.size(), 3u);
    EXPECT_EQ(read->gpu_count(), 1u);
    EXPECT_THAT(read->hives(), IsEmpty());
    auto map = map_gpus(*read, machine(1, 1, 0x300), MapRules{});
    ASSERT_TRUE(map) << map.error().text();
    EXPECT_EQ(map->at(0x107), 0x300u);
}

TEST(Topology, NineCpusAndOneGpu) {
    const Topology image = machine(9, 1, 0xf98b);
    auto map = map_gpus(image, machine(1, 1, 0x1234), MapRules{});
    ASSERT_TRUE(map) << map.error().text();
    EXPECT_EQ(*map, (GpuMap{{0xf98b, 0x1234}}));
}

TEST(Topology, SaysWhatIsNoProperty) {
    Node node;
    EXPECT_TRUE(parse_node_properties("simd_count 4\n\n", node, "x"));
    EXPECT_EQ(node.simd_count, 4u);
    for (const char* bad :
         {"simd_count", "simd_count x", "simd_count 99999999999999999999", "simd_count -1"}) {
        auto parsed = parse_node_properties(bad, node, "x");
        ASSERT_FALSE(parsed) << bad;
        EXPECT_THAT(parsed.error().line(), HasSubstr("no property"));
    }
}

TEST(TopologyMap, KeepsNumbersWhereItCan) {
    const Topology here = machine(1, 4);
    auto map = map_gpus(here, here, MapRules{});
    ASSERT_TRUE(map);
    EXPECT_EQ(*map, (GpuMap{{0x100, 0x100}, {0x101, 0x101}, {0x102, 0x102}, {0x103, 0x103}}));
}

TEST(TopologyMap, NamesWhatDoesNotFit) {
    Topology image = machine(1, 2);
    Topology here = machine(1, 2, 0x200);
    image.nodes[1].vram_size = 2u << 30;
    image.nodes[2].device_id = 1;
    auto map = map_gpus(image, here, MapRules{});
    ASSERT_FALSE(map);
    EXPECT_EQ(map.error().kind, ErrorKind::kUnsupported);
    EXPECT_THAT(map.error().text(), HasSubstr("GPU 0x0100 of the image"));
    EXPECT_THAT(map.error().text(),
                HasSubstr("of GPU 0x0200 vram_size is 1073741824, 2147483648 or more is wanted"));
    EXPECT_THAT(map.error().text(), HasSubstr("GPU 0x0101 of the image"));
    EXPECT_THAT(map.error().text(), HasSubstr("of GPU 0x0201 device_id is 29759, 1 is wanted"));
    map = map_gpus(image, machine(1, 3), MapRules{});
    ASSERT_FALSE(map);
    EXPECT_THAT(map.error().text(), HasSubstr("the image has 2, and 3 can be seen here"));
}

TEST(TopologyMap, EachRuleCanBeSwitchedOff) {
    const std::pair<bool MapRules::*, uint64_t Node::*> cases[] = {
        {&MapRules::firmware, &Node::fw_version},
        {&MapRules::sdma_firmware, &Node::sdma_fw_version},
        {&MapRules::caches, &Node::caches_count},
        {&MapRules::gws, &Node::num_gws},
        {&MapRules::vram_size, &Node::vram_size},
        {&MapRules::capability, &Node::capability}};
    for (const auto& [rule, field] : cases) {
        const Topology here = machine(1, 1);
        Topology image = here;
        image.nodes[1].*field += 1;
        MapRules rules;
        EXPECT_FALSE(map_gpus(image, here, rules));
        rules.*rule = false;
        EXPECT_TRUE(map_gpus(image, here, rules));
        // Newer and bigger is as good, but for what the GPU can do.
        EXPECT_EQ(map_gpus(here, image, MapRules{}).has_value(), rule != &MapRules::capability);
    }
}

TEST(TopologyMap, HivesStayTogether) {
    Topology image = machine(1, 4);
    join(image, 1, 2, kXgmiLink);
    Topology here = machine(1, 4);
    join(here, 2, 4, kXgmiLink);
    auto map = map_gpus(image, here, MapRules{});
    ASSERT_TRUE(map) << map.error().text();
    EXPECT_EQ((std::set<uint32_t>{map->at(0x100), map->at(0x101)}),
              (std::set<uint32_t>{0x101, 0x103}));
    EXPECT_FALSE(map_gpus(image, machine(1, 4), MapRules{}));  // no hive there
    EXPECT_TRUE(map_gpus(machine(1, 4), here, MapRules{}));    // a hive is no harm
    Topology three = machine(1, 4);
    join(three, 1, 2, kXgmiLink);
    join(three, 2, 3, kXgmiLink);
    EXPECT_TRUE(map_gpus(image, three, MapRules{}));  // part of a bigger one
    EXPECT_FALSE(map_gpus(three, image, MapRules{}));
}

TEST(TopologyMap, LinksToCpusAreKeptOrLetGo) {
    const Topology one_each = machine(2, 2);  // a GPU at each CPU
    const Topology together = machine(1, 2);
    EXPECT_FALSE(map_gpus(one_each, together, MapRules{}));
    EXPECT_FALSE(map_gpus(together, one_each, MapRules{}));
    MapRules rules;
    rules.numa = false;
    EXPECT_TRUE(map_gpus(one_each, together, rules));
    EXPECT_TRUE(map_gpus(together, one_each, rules));
}

TEST(TopologyMap, BetterLinksReplaceWorse) {
    Topology pcie = machine(1, 1);
    Topology xgmi = machine(1, 1);
    for (Node& node : xgmi.nodes)
        node.links[0].type = kXgmiLink;
    EXPECT_TRUE(map_gpus(pcie, xgmi, MapRules{}));
    EXPECT_FALSE(map_gpus(xgmi, pcie, MapRules{}));
    Topology one_way = pcie;
    one_way.nodes[0].links.clear();
    EXPECT_TRUE(map_gpus(one_way, pcie, MapRules{}));
    EXPECT_FALSE(map_gpus(pcie, one_way, MapRules{}));
}

TEST(TopologyMap, TheAdministratorMayNamePairs) {
    MapRules rules;
    rules.wanted = {{0x100, 0x201}};
    auto map = map_gpus(machine(1, 2), machine(1, 2, 0x200), rules);
    ASSERT_TRUE(map);
    EXPECT_EQ(*map, (GpuMap{{0x100, 0x201}, {0x101, 0x200}}));
    rules.wanted = {{0x100, 0x999}};
    map = map_gpus(machine(1, 2), machine(1, 2, 0x200), rules);
    ASSERT_FALSE(map);
    EXPECT_THAT(map.error().text(), HasSubstr("device-map"));
}

// A choice that looks good at first has to be taken back: the only fitting GPU for the second one
// is taken.
TEST(TopologyMap, TakesChoicesBack) {
    Topology image = machine(1, 3);
    Topology here = machine(1, 3, 0x200);
    image.nodes[2].vram_size = 2u << 30;
    image.nodes[3].fw_version = 70;
    here.nodes[1].vram_size = 4ull << 30;  // the first candidate for all three
    here.nodes[1].fw_version = 80;
    here.nodes[2].fw_version = 80;
    auto map = map_gpus(image, here, MapRules{});
    ASSERT_TRUE(map) << map.error().text();
    EXPECT_EQ(*map, (GpuMap{{0x100, 0x202}, {0x101, 0x200}, {0x102, 0x201}}));
}

// What a map must be, said anew and slowly: all ways to map CPUs are tried.
class Oracle {
  public:
    Oracle(const Topology& image, const Topology& here) : image_(image), here_(here) {}

    bool accepts(const GpuMap& map) const {
        std::set<uint32_t> used;
        for (const auto& [there, here] : map)
            if (!used.insert(here).second ||
                !good_enough(*image_.by_gpu_id(there), *here_.by_gpu_id(here)))
                return false;
        return keeps_xgmi(map) && some_cpus_fit(map);
    }

    bool any() const {
        std::vector<uint32_t> there = gpus(image_), here = gpus(here_);
        std::sort(here.begin(), here.end());
        do {
            GpuMap map;
            for (size_t i = 0; i < there.size(); ++i)
                map[there[i]] = here[i];
            if (accepts(map))
                return true;
        } while (std::next_permutation(here.begin(), here.end()));
        return false;
    }

  private:
    static std::vector<uint32_t> gpus(const Topology& topology) {
        std::vector<uint32_t> ids;
        for (const Node& node : topology.nodes)
            if (node.is_gpu())
                ids.push_back(node.gpu_id);
        return ids;
    }

    static bool good_enough(const Node& wanted, const Node& offered) {
        return wanted.vram_size <= offered.vram_size && wanted.links.size() <= offered.links.size();
    }

    bool keeps_xgmi(const GpuMap& map) const {
        for (const auto& [there, here] : map)
            for (const auto& [other_there, other_here] : map)
                if (image_.has_link(image_.by_gpu_id(there)->id, kXgmiLink,
                                    image_.by_gpu_id(other_there)->id) &&
                    !here_.has_link(here_.by_gpu_id(here)->id, kXgmiLink,
                                    here_.by_gpu_id(other_here)->id))
                    return false;
        return true;
    }

    bool some_cpus_fit(const GpuMap& map) const {
        std::vector<uint32_t> cpus;
        for (const Node& node : here_.nodes)
            if (!node.is_gpu())
                cpus.push_back(node.id);
        while (cpus.size() < image_.nodes.size())
            cpus.push_back(1000 + static_cast<uint32_t>(
                                      cpus.size()));  // none: a CPU that no GPU hangs at needs none
        do {
            if (cpus_fit(map, cpus))
                return true;
        } while (std::next_permutation(cpus.begin(), cpus.end()));
        return false;
    }

    bool cpus_fit(const GpuMap& map, const std::vector<uint32_t>& cpus) const {
        for (const auto& [there, here] : map)
            for (const Link& link : image_.by_gpu_id(there)->links)
                if (!image_.by_id(link.to_node)->is_gpu() &&
                    (link.to_node >= cpus.size() ||
                     !here_.has_link(here_.by_gpu_id(here)->id, kPcieLink, cpus[link.to_node])))
                    return false;
        return true;
    }

    const Topology& image_;
    const Topology& here_;
};

// Hives are cliques, as KFD's are.
Topology random_machine(std::mt19937& random, uint32_t gpus, uint32_t first_gpu_id) {
    Topology topology = machine(1 + random() % 2, 0);
    const auto cpus = static_cast<uint32_t>(topology.nodes.size());
    for (uint32_t i = 0; i < gpus; ++i) {
        topology.nodes.push_back(gpu_node(cpus + i, first_gpu_id + i));
        topology.nodes.back().vram_size = 1 + random() % 2;
        join(topology, cpus + i, static_cast<uint32_t>(random() % cpus), kPcieLink);
    }
    const auto hive = static_cast<uint32_t>(random() % (gpus + 1));
    for (uint32_t one = 0; one < hive; ++one)
        for (uint32_t other = one + 1; other < hive; ++other)
            join(topology, cpus + one, cpus + other, kXgmiLink);
    return topology;
}

TEST(TopologyMap, FindsAMapExactlyWhereThereIsOne) {
    std::mt19937 random(4711);
    int found = 0;
    constexpr int kRounds = 2000;
    for (int round = 0; round < kRounds; ++round) {
        const auto gpus = static_cast<uint32_t>(1 + random() % 4);
        const Topology image = random_machine(random, gpus, 0x100);
        const Topology here = random_machine(random, gpus, 0x102);
        const Oracle oracle(image, here);
        auto map = map_gpus(image, here, MapRules{});
        ASSERT_EQ(map.has_value(), oracle.any()) << "round " << round;
        if (!map)
            continue;
        ++found;
        ASSERT_EQ(map->size(), gpus);
        ASSERT_TRUE(oracle.accepts(*map)) << "round " << round;
    }
    EXPECT_GT(found, kRounds / 10);
    EXPECT_LT(found, kRounds * 9 / 10);
}

TEST(TopologyMap, AnyNumberingOfOneMachineFits) {
    std::mt19937 random(815);
    for (int round = 0; round < 200; ++round) {
        const Topology image = random_machine(random, 8, 0x100);
        Topology here = image;
        std::vector<uint32_t> ids;
        for (const Node& node : here.nodes)
            if (node.is_gpu())
                ids.push_back(node.gpu_id);
        std::shuffle(ids.begin(), ids.end(), random);
        for (Node& node : here.nodes)
            if (node.is_gpu()) {
                node.gpu_id = ids.back();
                ids.pop_back();
            }
        ASSERT_TRUE(map_gpus(image, here, MapRules{})) << "round " << round;
    }
}

}  // namespace
}  // namespace checkpointd::amdgpu
