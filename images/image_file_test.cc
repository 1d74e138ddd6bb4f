// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <random>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/io.h"
#include "images/image_dir.h"
#include "images/proto/files.pb.h"
#include "images/proto/inventory.pb.h"
#include "images/proto/memory.pb.h"
#include "images/proto/sockets.pb.h"
#include "images/proto/stats.pb.h"
#include "images/records.h"
#include "images/test_dir.h"

namespace checkpointd::images {
namespace {

using testing::HasSubstr;

pstree_entry task(uint32_t pid) {
    pstree_entry entry;
    entry.set_pid(pid);
    entry.set_ppid(1);
    entry.set_pgid(pid);
    entry.set_sid(pid);
    entry.add_threads(pid);
    return entry;
}

std::string slurp(const ImageDir& dir, const std::string& name) {
    auto text = read_file(dir.fd(), name);
    EXPECT_TRUE(text) << text.error().text();
    return text.value_or("");
}

// A file in memory with that content, as an ImageReader wants it.
ScopedFd memory_file(std::string_view content) {
    ScopedFd file(memfd_create("image", MFD_CLOEXEC));
    EXPECT_TRUE(write_all(file.get(), content.data(), content.size(), "memfd"));
    return file;
}

struct Fixture : testing::Test {
    TestDir tmp;
    ImageDir dir = *ImageDir::open(AT_FDCWD, tmp.path());
};

using ImageFile = Fixture;

TEST_F(ImageFile, LayoutIsThatOfTheFormat) {
    ASSERT_TRUE(dir.write_one(ImageType::kPstree, 0, task(7)));
    std::string bytes = slurp(dir, "pstree.img");
    std::string packed = task(7).SerializeAsString();
    ASSERT_EQ(bytes.size(), 12 + packed.size());
    EXPECT_EQ(bytes.substr(0, 8), std::string("\x19\x43\x56\x54\x30\x30\x27\x50"));
    uint32_t size = 0;
    std::memcpy(&size, bytes.data() + 8, 4);
    EXPECT_EQ(size, packed.size());
    EXPECT_EQ(bytes.substr(12), packed);
}

TEST_F(ImageFile, InventoryHasItsOwnMagicOnlyAndStatsTheServiceMagic) {
    inventory_entry inventory;
    inventory.set_img_version(2);
    ASSERT_TRUE(dir.write_one(ImageType::kInventory, 0, inventory));
    EXPECT_EQ(slurp(dir, "inventory.img").substr(0, 4), std::string("\x16\x31\x31\x58"));
    ASSERT_TRUE(dir.write_one(ImageType::kStatsDump, 0, stats_entry()));
    EXPECT_EQ(slurp(dir, "stats-dump").substr(0, 8),
              std::string("\x40\x59\x10\x55\x06\x33\x09\x57"));
    EXPECT_EQ(dir.read_one<inventory_entry>(ImageType::kInventory)->img_version(), 2u);
}

TEST_F(ImageFile, ManyRecordsComeBackInOrder) {
    auto writer = dir.create(ImageType::kPstree);
    ASSERT_TRUE(writer);
    for (uint32_t pid = 1; pid <= 5000; ++pid)
        ASSERT_TRUE(writer->record(task(pid)));
    ASSERT_TRUE(writer->finish());
    auto tasks = dir.read_all<pstree_entry>(ImageType::kPstree);
    ASSERT_TRUE(tasks) << tasks.error().text();
    ASSERT_EQ(tasks->size(), 5000u);
    for (uint32_t i = 0; i < 5000; ++i)
        ASSERT_EQ((*tasks)[i].pid(), i + 1);
}

TEST_F(ImageFile, PayloadLargerThanTheBufferIsReadAndSkipped) {
    std::string big(300'000, 'x');
    big.back() = 'y';
    auto writer = dir.create(ImageType::kPipesData);
    for (uint32_t id : {1u, 2u}) {
        pipe_data_entry entry;
        entry.set_pipe_id(id);
        entry.set_bytes(static_cast<uint32_t>(big.size()));
        ASSERT_TRUE(writer->record(entry));
        ASSERT_TRUE(writer->payload(big.data(), big.size()));
    }
    ASSERT_TRUE(writer->finish());
    auto reader = dir.open_image(ImageType::kPipesData);
    auto first = reader->expect<pipe_data_entry>();
    ASSERT_TRUE(reader->skip(first->bytes()));
    auto second = reader->expect<pipe_data_entry>();
    ASSERT_TRUE(second);
    EXPECT_EQ(second->pipe_id(), 2u);
    EXPECT_EQ(reader->payload(second->bytes()).value(), big);
    EXPECT_EQ(reader->remaining(), 0u);
    EXPECT_EQ(writer->size(), slurp(dir, "pipes-data.img").size());
}

TEST_F(ImageFile, RecordWithoutARequiredFieldIsNotWritten) {
    pstree_entry half;
    half.set_pid(1);
    auto result = dir.write_one(ImageType::kPstree, 0, half);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::kInternal);
}

TEST_F(ImageFile, MissingFileAndForeignMagicAreNamed) {
    EXPECT_FALSE(dir.open_optional(ImageType::kPstree)->has_value());
    auto missing = dir.open_image(ImageType::kCore, 12);
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().kind, ErrorKind::kBadImage);
    EXPECT_THAT(missing.error().line(), HasSubstr("core-12.img"));
    ASSERT_TRUE(dir.write_one(ImageType::kPstree, 0, task(1)));
    ASSERT_EQ(renameat(dir.fd(), "pstree.img", dir.fd(), "files.img"), 0);
    auto foreign = dir.open_image(ImageType::kFiles);
    ASSERT_FALSE(foreign);
    EXPECT_EQ(foreign.error().kind, ErrorKind::kBadImage);
    EXPECT_THAT(foreign.error().line(), HasSubstr("0x50273030"));
}

TEST_F(ImageFile, LinksAndFifosAreNotFollowed) {
    ASSERT_EQ(symlinkat("/etc/passwd", dir.fd(), "pstree.img"), 0);
    EXPECT_FALSE(dir.open_image(ImageType::kPstree));
    EXPECT_FALSE(dir.create(ImageType::kPstree));
    ASSERT_EQ(mkfifoat(dir.fd(), "files.img", 0600), 0);
    auto fifo = dir.open_image(ImageType::kFiles);
    ASSERT_FALSE(fifo);
    EXPECT_EQ(fifo.error().kind, ErrorKind::kBadImage);
}

TEST_F(ImageFile, ListKnowsImagesFromOtherFiles) {
    ASSERT_TRUE(dir.create_raw(ImageType::kPages, 3));
    ASSERT_TRUE(dir.create_raw(ImageType::kGhostFile, 0x1f));
    ASSERT_TRUE(write_file(dir.fd(), "dump.log", "hello"));
    ASSERT_TRUE(write_file(dir.fd(), "core-007.img", ""));
    auto images = dir.list();
    ASSERT_TRUE(images);
    EXPECT_THAT(*images, testing::ElementsAre(ImageName{ImageType::kGhostFile, 0x1f},
                                              ImageName{ImageType::kPages, 3}));
}

TEST(ImageType, NamesAndParsingAreEachOthersInverse) {
    for (const ImageTypeInfo& info : image_types()) {
        for (uint64_t id : {uint64_t{0}, uint64_t{26}, UINT64_MAX}) {
            auto parsed = parse_image_name(image_name(info.type, id));
            ASSERT_TRUE(parsed) << image_name(info.type, id);
            EXPECT_EQ(parsed->type, info.type) << image_name(info.type, id);
            EXPECT_EQ(parsed->id, info.id_base == 0 ? 0 : id);
        }
    }
    EXPECT_EQ(image_name(ImageType::kTcpStream, 255), "tcp-stream-ff.img");
    EXPECT_EQ(image_name(ImageType::kTmpfsDev, 42), "tmpfs-dev-42.tar.gz.img");
    for (const char* name : {"", ".img", "core-.img", "core--1.img", "core-1.img~", "corE-1.img",
                             "pagemap-shmem.img", "core-18446744073709551616.img"})
        EXPECT_FALSE(parse_image_name(name)) << name;
}

// --- damage ---------------------------------------------------------------------------------------

struct Sample {
    ImageType type;
    std::string bytes;
    std::vector<size_t> ends;  // lengths at which the file is whole
};

std::string file_of(ImageType type, const std::function<void(ImageWriter&)>& fill) {
    ScopedFd file(memfd_create("sample", MFD_CLOEXEC));
    int fd = dup(file.get());
    auto writer = ImageWriter::start(std::move(file), "sample", type);
    fill(*writer);
    EXPECT_TRUE(writer->finish());
    EXPECT_EQ(lseek(fd, 0, SEEK_SET), 0);
    std::string bytes = read_fd(fd, "sample").value();
    close(fd);
    return bytes;
}

Sample pipes_sample() {
    Sample sample{ImageType::kPipesData, {}, {8}};
    sample.bytes = file_of(sample.type, [&](ImageWriter& writer) {
        for (uint32_t id = 1; id <= 3; ++id) {
            pipe_data_entry entry;
            entry.set_pipe_id(id);
            entry.set_bytes(10 * id);
            ASSERT_TRUE(writer.record(entry));
            ASSERT_TRUE(writer.payload(std::string(10 * id, 'p').data(), 10 * id));
            sample.ends.push_back(writer.size());
        }
    });
    return sample;
}

Sample files_sample() {
    Sample sample{ImageType::kFiles, {}, {8}};
    sample.bytes = file_of(sample.type, [&](ImageWriter& writer) {
        for (uint32_t id = 1; id <= 3; ++id) {
            file_entry entry;
            entry.set_type(UNIXSK);
            entry.set_id(id);
            auto* fown = entry.mutable_efd()->mutable_fown();
            for (auto set : {&fown_entry::set_uid, &fown_entry::set_euid, &fown_entry::set_signum,
                             &fown_entry::set_pid_type, &fown_entry::set_pid})
                (fown->*set)(id * 300);
            entry.mutable_efd()->set_id(id);
            entry.mutable_efd()->set_flags(2);
            entry.mutable_efd()->set_counter(id);
            ASSERT_TRUE(writer.record(entry));
            sample.ends.push_back(writer.size());
        }
    });
    return sample;
}

Sample pagemap_sample() {
    Sample sample{ImageType::kPagemap, {}, {}};
    sample.bytes = file_of(sample.type, [&](ImageWriter& writer) {
        pagemap_head head;
        head.set_pages_id(1);
        ASSERT_TRUE(writer.record(head));
        sample.ends.push_back(writer.size());
        pagemap_entry entry;
        entry.set_vaddr(0x7f0000000000);
        entry.set_compat_nr_pages(5);
        ASSERT_TRUE(writer.record(entry));
        sample.ends.push_back(writer.size());
    });
    return sample;
}

Sample ghost_sample() {
    Sample sample{ImageType::kGhostFile, {}, {}};
    sample.bytes = file_of(sample.type, [&](ImageWriter& writer) {
        ghost_file_entry head;
        head.set_uid(0);
        head.set_gid(0);
        head.set_mode(0100600);
        head.set_chunks(true);
        ASSERT_TRUE(writer.record(head));
        sample.ends.push_back(writer.size());
        ghost_chunk_entry chunk;
        chunk.set_len(9);
        chunk.set_off(4096);
        ASSERT_TRUE(writer.record(chunk));
        ASSERT_TRUE(writer.payload("nine byte", 9));
        sample.ends.push_back(writer.size());
    });
    return sample;
}

std::vector<Sample> samples() {
    return {pipes_sample(), files_sample(), pagemap_sample(), ghost_sample()};
}

// Reads everything; the number of records, or the error.
Result<int> walk(ImageType type, std::string_view bytes) {
    CKPT_ASSIGN(ImageReader reader, ImageReader::start(memory_file(bytes), "sample", type));
    int count = 0;
    CKPT_TRY(visit_records(reader, type, [&](const auto&, std::string_view) -> Result<void> {
        ++count;
        return {};
    }));
    return count;
}

TEST(Damage, EveryTruncationIsFoundOrEndsAtARecord) {
    for (const Sample& sample : samples()) {
        for (size_t length = 0; length <= sample.bytes.size(); ++length) {
            auto result = walk(sample.type, std::string_view(sample.bytes).substr(0, length));
            bool whole = std::ranges::find(sample.ends, length) != sample.ends.end();
            ASSERT_EQ(result.has_value(), whole)
                << image_name(sample.type) << " cut to " << length << " bytes";
            if (!result) {
                ASSERT_EQ(result.error().kind, ErrorKind::kBadImage) << result.error().text();
            }
        }
    }
}

TEST(Damage, BitFlipsNeverCrashAndFailOnlyAsBadImage) {
    std::mt19937 random(1);
    int refused = 0;
    for (const Sample& sample : samples()) {
        for (int round = 0; round < 2000; ++round) {
            std::string bytes = sample.bytes;
            for (uint32_t flips = 1 + random() % 3; flips > 0; --flips)
                bytes[random() % bytes.size()] ^= static_cast<char>(1u << random() % 8);
            auto result = walk(sample.type, bytes);
            if (result)
                continue;
            ++refused;
            ASSERT_EQ(result.error().kind, ErrorKind::kBadImage) << result.error().text();
            ASSERT_THAT(result.error().line(), HasSubstr("sample"));
        }
    }
    EXPECT_GT(refused, 1000);
}

TEST(Damage, HugeLengthsAreRefusedBeforeMemoryIsTaken) {
    std::string bytes = pipes_sample().bytes;
    std::string grown = bytes;
    grown.replace(8, 4, "\xff\xff\xff\xff", 4);
    auto result = walk(ImageType::kPipesData, grown);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().line(), HasSubstr("4294967295"));
    // A sparse file of a terabyte behind a ghost file's record must not be read into memory.
    ScopedFd file(memfd_create("sparse", MFD_CLOEXEC));
    std::string head = file_of(ImageType::kGhostFile, [](ImageWriter& writer) {
        ghost_file_entry entry;
        entry.set_uid(0);
        entry.set_gid(0);
        entry.set_mode(0100600);
        ASSERT_TRUE(writer.record(entry));
    });
    ASSERT_TRUE(write_all(file.get(), head.data(), head.size(), "sparse"));
    ASSERT_EQ(ftruncate(file.get(), 1l << 40), 0);
    auto reader = ImageReader::start(std::move(file), "sparse", ImageType::kGhostFile);
    auto walked = visit_records(*reader, ImageType::kGhostFile,
                                [](const auto&, auto) -> Result<void> { return {}; });
    ASSERT_FALSE(walked);
    EXPECT_EQ(walked.error().kind, ErrorKind::kBadImage);
}

TEST(Records, RawFilesHaveNone) {
    auto reader = ImageReader::start(memory_file("raw"), "pages-1.img", ImageType::kPages);
    ASSERT_TRUE(reader);
    auto result = visit_records(*reader, ImageType::kPages,
                                [](const auto&, auto) -> Result<void> { return {}; });
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::kBadInput);
}

TEST(Records, EveryTypeWithRecordsHasAMessage) {
    for (const ImageTypeInfo& info : image_types()) {
        if (info.shape == ImageShape::kRaw)
            continue;
        std::string empty = file_of(info.type, [](ImageWriter&) {});
        auto count = walk(info.type, empty);
        // Empty is right for lists and wrong, but understood, for the others.
        if (!count) {
            EXPECT_EQ(count.error().kind, ErrorKind::kBadImage) << count.error().text();
        }
    }
}

}  // namespace
}  // namespace checkpointd::images
