// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "core/base/io.h"
#include "images/content_check.h"
#include "images/image_store.h"
#include "images/proto/inventory.pb.h"
#include "images/test_dir.h"

namespace checkpointd::images {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr CommitOptions kFast{.sync = false};

void write_inventory(const ImageDir& dir) {
    inventory_entry inventory;
    inventory.set_img_version(2);
    ASSERT_TRUE(dir.write_one(ImageType::kInventory, 0, inventory));
}

void write_pages(const ImageDir& dir, size_t size) {
    auto file = dir.create_raw(ImageType::kPages, 1);
    std::string pages(size, '\0');
    for (size_t i = 0; i < size; i += 4096)
        pages[i] = static_cast<char>(i >> 12);
    ASSERT_TRUE(write_all(file->get(), pages.data(), pages.size(), "pages"));
}

std::vector<std::string> children(const TestDir& dir) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir.path()))
        names.push_back(entry.path().filename());
    std::ranges::sort(names);
    return names;
}

ImageDir committed(const TestDir& tmp, const std::string& name, const CommitOptions& options) {
    auto pending = PendingImage::begin(tmp.fd(), name);
    EXPECT_TRUE(pending) << pending.error().text();
    write_inventory(pending->dir());
    write_pages(pending->dir(), 9 << 20);
    auto dir = pending->commit(options);
    EXPECT_TRUE(dir) << dir.error().text();
    return std::move(*dir);
}

void flip_byte(const ImageDir& dir, const char* name, off_t offset) {
    ScopedFd file(openat(dir.fd(), name, O_RDWR));
    char byte = 0;
    ASSERT_EQ(pread(file.get(), &byte, 1, offset), 1);
    byte ^= 4;
    ASSERT_EQ(pwrite(file.get(), &byte, 1, offset), 1);
}

TEST(PendingImage, IsInvisibleUntilCommittedAndWholeAfterwards) {
    TestDir tmp;
    {
        auto pending = PendingImage::begin(tmp.fd(), "one");
        ASSERT_TRUE(pending);
        write_inventory(pending->dir());
        EXPECT_FALSE(std::filesystem::exists(tmp.path() + "/one"));
        auto dir = pending->commit();
        ASSERT_TRUE(dir) << dir.error().text();
        EXPECT_TRUE(verify(*dir, VerifyDepth::kFull));
    }
    EXPECT_THAT(children(tmp), ElementsAre("one"));
    struct stat about {};
    ASSERT_EQ(stat((tmp.path() + "/one").c_str(), &about), 0);
    EXPECT_EQ(about.st_mode & 0777, 0700u);
}

TEST(PendingImage, DroppedLeavesNothing) {
    TestDir tmp;
    {
        auto pending = PendingImage::begin(tmp.fd(), "one");
        write_inventory(pending->dir());
        auto moved = std::move(*pending);
        EXPECT_EQ(children(tmp).size(), 1u);
    }
    EXPECT_THAT(children(tmp), IsEmpty());
}

TEST(PendingImage, NeverReplacesAnImage) {
    TestDir tmp;
    committed(tmp, "one", kFast);
    auto before = children(tmp);
    {
        auto pending = PendingImage::begin(tmp.fd(), "one");
        write_inventory(pending->dir());
        auto again = pending->commit(kFast);
        ASSERT_FALSE(again);
        EXPECT_EQ(again.error().kind, ErrorKind::kConflict);
    }
    EXPECT_EQ(children(tmp), before);
    EXPECT_TRUE(verify(*ImageDir::open(tmp.fd(), "one"), VerifyDepth::kFull));
}

TEST(PendingImage, CleaningSparesTheLivingAndTakesTheDead) {
    TestDir tmp;
    pid_t child = fork();
    if (child == 0) {
        // Dies without running any destructor.
        auto pending = PendingImage::begin(tmp.fd(), "dead");
        _exit(pending ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
    auto living = PendingImage::begin(tmp.fd(), "living");
    write_inventory(living->dir());
    EXPECT_EQ(children(tmp).size(), 2u);
    EXPECT_EQ(remove_partials(tmp.fd()).value(), 1u);
    EXPECT_TRUE(living->commit(kFast));
    EXPECT_THAT(children(tmp), ElementsAre("living"));
}

TEST(Manifest, FindsADamagedByteAndSaysWhere) {
    TestDir tmp;
    ImageDir dir = committed(tmp, "one", kFast);
    flip_byte(dir, "pages-1.img", (5 << 20) + 17);
    EXPECT_TRUE(verify(dir, VerifyDepth::kSizes));
    EXPECT_TRUE(verify(dir, VerifyDepth::kButMemory));
    std::stop_source stop;
    stop.request_stop();
    auto cancelled = verify(dir, VerifyDepth::kFull, 2, stop.get_token());
    ASSERT_FALSE(cancelled);
    EXPECT_EQ(cancelled.error().kind, ErrorKind::kCancelled);
    for (unsigned threads : {1u, 3u}) {
        auto result = verify(dir, VerifyDepth::kFull, threads);
        ASSERT_FALSE(result);
        EXPECT_EQ(result.error().kind, ErrorKind::kBadImage);
        ASSERT_EQ(result.error().causes.size(), 1u);
        EXPECT_THAT(result.error().causes[0].line(), HasSubstr("pages-1.img"));
        EXPECT_THAT(result.error().causes[0].line(), HasSubstr("4194304"));
    }
}

// 9 MiB in three chunks, as a reader gets them: after a header, in parts of 1 MiB.
class Contents : public testing::Test {
  protected:
    static constexpr uint64_t kHeader = 8, kPart = 1 << 20, kSize = 9 * kPart + kHeader;

    void SetUp() override {
        for (size_t i = 0; i < content_.size(); ++i)
            content_[i] = static_cast<char>(i * 31 + i / 4096);
        ASSERT_TRUE(write_file(dir_.fd(), kName, content_));
        digest_ = digest_file(image(), kName, 1).value();
        ASSERT_EQ(digest_.chunks.size(), 3u);
        // What is read later is something else: so it is seen whether anything is.
        ASSERT_TRUE(write_file(dir_.fd(), kName, std::string(kSize, 'x')));
    }
    ImageDir image() const { return *ImageDir::open(AT_FDCWD, dir_.path()); }
    Result<void> add(ContentCheck& check, uint64_t offset, uint64_t size) const {
        return check.add(kName, offset, reinterpret_cast<const std::byte*>(content_.data()) + offset, size);
    }

    static constexpr const char* kName = "amdgpu-pages-7-1002.img";
    TestDir dir_;
    std::string content_ = std::string(kSize, 0);
    FileDigest digest_;
};

TEST_F(Contents, AreNotReadAgainOnceTheyCameInOrder) {
    ContentCheck check({digest_});
    ASSERT_TRUE(add(check, 0, kHeader));
    for (uint64_t at = kHeader; at < kSize; at += kPart)
        ASSERT_TRUE(add(check, at, kPart));
    EXPECT_TRUE(check.finish(image(), 2));
}

TEST_F(Contents, AreReadWhereTheyCameInDisorderOrNotAtAll) {
    for (const uint64_t missing : {uint64_t{kHeader}, kHeader + 5 * kPart, kHeader + 8 * kPart}) {
        ContentCheck check({digest_});
        ASSERT_TRUE(add(check, 0, kHeader));
        for (uint64_t at = kHeader; at < kSize; at += kPart)
            ASSERT_TRUE(at == missing || add(check, at, kPart));
        ASSERT_TRUE(add(check, missing, 0));
        auto found = check.finish(image(), 1);
        ASSERT_FALSE(found);
        EXPECT_THAT(found.error().line(), HasSubstr(std::string(kName) + ": is damaged between offsets"));
    }
}

TEST_F(Contents, AreRefusedWhenTheyAreNotWhatWasWritten) {
    for (const uint64_t at : {uint64_t{0}, uint64_t{kDigestChunk}, kSize - 1}) {
        ContentCheck check({digest_});
        content_[at] ^= 4;
        auto read = add(check, 0, kSize);
        content_[at] ^= 4;
        ASSERT_FALSE(read);
        EXPECT_THAT(read.error().line(), HasSubstr(fmt::format("offsets {} and", at / kDigestChunk * kDigestChunk)));
    }
    ContentCheck none({FileDigest{kName, kSize, {}}});
    EXPECT_TRUE(add(none, 0, kSize));
    EXPECT_TRUE(none.add("other", 0, nullptr, 0));
    EXPECT_TRUE(none.finish(image(), 1));
}

TEST_F(Contents, ComeFromSeveralThreads) {
    ContentCheck check({digest_});
    {
        std::vector<std::jthread> readers;
        for (uint64_t at = 0; at < kSize; at += kDigestChunk)
            readers.emplace_back([&, at] { EXPECT_TRUE(add(check, at, std::min(kDigestChunk, kSize - at))); });
    }
    EXPECT_TRUE(check.finish(image(), 1));
}

TEST(Manifest, TellsMemoryByTheName) {
    for (const char* name : {"pages-1.img", "amdgpu-pages-7-1002.img", "gpu-cs-7.img", "sample-pages-7f00.img"})
        EXPECT_TRUE(holds_memory(name)) << name;
    for (const char* name : {"pagemap-1.img", "amdgpu-kfd-7.img", "core-1.img", "facts.json", "amdgpu-pages-7"})
        EXPECT_FALSE(holds_memory(name)) << name;
}

TEST(Manifest, FindsAllFaultsAtOnceWithoutReadingContents) {
    TestDir tmp;
    ImageDir dir = committed(tmp, "one", kFast);
    ASSERT_EQ(unlinkat(dir.fd(), "inventory.img", 0), 0);
    ASSERT_EQ(truncate((tmp.path() + "/one/pages-1.img").c_str(), 100), 0);
    ASSERT_TRUE(write_file(dir.fd(), "core-9.img", "planted"));
    ASSERT_TRUE(write_file(dir.fd(), "restore.log", "harmless"));
    auto result = verify(dir, VerifyDepth::kSizes);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().causes.size(), 3u) << result.error().text();
    EXPECT_THAT(result.error().text(), HasSubstr("core-9.img"));
}

TEST(Manifest, EveryDamageToTheManifestItselfIsFoundOrHarmless) {
    TestDir tmp;
    ImageDir dir = committed(tmp, "one", kFast);
    std::string text = read_file(dir.fd(), kManifestName).value();
    for (size_t length = 0; length + 2 < text.size(); ++length)
        ASSERT_FALSE(parse_manifest(text.substr(0, length), "m")) << length;
    Manifest good = parse_manifest(text, "m").value();
    for (size_t bit = 0; bit < text.size() * 8; ++bit) {
        std::string flipped = text;
        flipped[bit / 8] ^= static_cast<char>(1u << bit % 8);
        auto parsed = parse_manifest(flipped, "m");
        if (!parsed) {
            ASSERT_EQ(parsed.error().kind, ErrorKind::kBadImage);
        } else if (parsed->files != good.files) {
            ASSERT_TRUE(write_file(dir.fd(), kManifestName, flipped));
            ASSERT_FALSE(verify(dir, VerifyDepth::kFull)) << "bit " << bit;
        }
    }
}

TEST(Manifest, RefusesNamesOutsideTheImage) {
    for (const char* name : {"../x", "/etc/passwd", ".", "..", ""}) {
        Manifest manifest{{{name, 0, {}}}};
        EXPECT_FALSE(parse_manifest(to_json(manifest), "m")) << name;
    }
}

TEST(Manifest, TakesDigestsThatAWriterComputed) {
    TestDir tmp;
    auto pending = PendingImage::begin(tmp.fd(), "one");
    write_pages(pending->dir(), 5 << 20);
    FileDigest digest = digest_file(pending->dir(), "pages-1.img", 2).value();
    EXPECT_EQ(digest.chunks.size(), 2u);
    std::string pages = read_file(pending->dir().fd(), "pages-1.img").value();
    EXPECT_EQ(digest.chunks[1], chunk_digest(pages.data() + kDigestChunk, 1 << 20));
    digest.chunks[1] ^= 1;
    pending->add_digest(digest);
    auto dir = pending->commit(kFast);
    ASSERT_TRUE(dir);
    EXPECT_FALSE(verify(*dir, VerifyDepth::kFull));
}

struct Store : testing::Test {
    TestDir tmp;
    std::string root = tmp.path() + "/store";
    ImageStore store = *ImageStore::open(root, true);

    ImageId put(const std::string& unit) {
        ImageId id = ImageStore::new_id(unit).value();
        auto pending = store.begin(id);
        EXPECT_TRUE(pending) << pending.error().text();
        write_inventory(pending->dir());
        ImageInfo info = local_image_info().value();
        info.unit = unit;
        info.pids = {10, 12};
        info.max_pid = 12;
        info.extra["unit-file"] = "abc";
        auto dir = ImageStore::commit(std::move(*pending), info, kFast);
        EXPECT_TRUE(dir) << dir.error().text();
        return id;
    }
};

TEST_F(Store, AnImageBeginsPendingAndCarriesItsInfo) {
    ImageId id = put("redis.service");
    auto image = store.get(id);
    ASSERT_TRUE(image) << image.error().text();
    EXPECT_EQ(image->state, ImageState::kPending);
    EXPECT_THAT(image->info.pids, ElementsAre(10, 12));
    EXPECT_EQ(image->info.extra.at("unit-file"), "abc");
    EXPECT_EQ(image->info.boot_id.size(), 36u);
    EXPECT_EQ(parse_image_info(to_json(image->info), "x").value(), image->info);
    EXPECT_TRUE(verify(*store.open_image(id), VerifyDepth::kFull));
}

TEST_F(Store, StatesChangeWithoutTouchingTheImage) {
    ImageId id = put("redis.service");
    for (ImageState state : {ImageState::kReady, ImageState::kConsumed, ImageState::kStale}) {
        ASSERT_TRUE(store.set_state(id, state, "because"));
        EXPECT_EQ(store.get(id)->state, state);
        EXPECT_EQ(store.get(id)->state_reason, "because");
        EXPECT_TRUE(verify(*store.open_image(id), VerifyDepth::kFull));
    }
}

TEST_F(Store, LatestIsTheNewestInThatState) {
    ImageId first = put("a.service");
    ImageId second = put("a.service");
    ImageId third = put("a.service");
    put("b.service");
    ASSERT_TRUE(store.set_state(first, ImageState::kReady, ""));
    ASSERT_TRUE(store.set_state(second, ImageState::kReady, ""));
    EXPECT_EQ(store.latest("a.service", ImageState::kReady)->id, second);
    EXPECT_EQ(store.latest("a.service", ImageState::kPending)->id, third);
    EXPECT_EQ(store.latest("c.service", ImageState::kReady).error().kind, ErrorKind::kNotFound);
    EXPECT_EQ(store.list()->size(), 4u);
    EXPECT_EQ(store.list("a.service")->size(), 3u);
}

TEST_F(Store, DamagedImageIsListedAsDamagedAndNeverChosen) {
    ImageId good = put("a.service");
    ImageId bad = put("a.service");
    ASSERT_TRUE(store.set_state(good, ImageState::kReady, ""));
    ASSERT_TRUE(write_file(store.open_image(bad)->fd(), kStateName, "{\"state\":\"re"));
    auto images = store.list("a.service");
    ASSERT_EQ(images->size(), 2u);
    EXPECT_FALSE((*images)[0].damage);
    EXPECT_TRUE((*images)[1].damage);
    EXPECT_EQ(store.latest("a.service", ImageState::kReady)->id, good);
}

TEST_F(Store, RemoveAndClean) {
    ImageId id = put("a.service");
    ASSERT_TRUE(store.remove(id));
    EXPECT_EQ(store.get(id).error().kind, ErrorKind::kNotFound);
    EXPECT_EQ(store.remove(id).error().kind, ErrorKind::kNotFound);
    EXPECT_THAT(*store.list(), IsEmpty());
    ASSERT_EQ(mkdir((root + "/a.service").c_str(), 0700), 0);
    ASSERT_EQ(mkdir((root + "/a.service/.x.partial-1").c_str(), 0700), 0);
    EXPECT_EQ(store.clean().value(), 1u);
}

TEST_F(Store, NamesCannotLeaveTheStore) {
    for (const char* unit : {"..", "a/b", "", ".hidden", "a b"})
        EXPECT_FALSE(ImageStore::new_id(unit)) << unit;
    for (const char* text : {"x", "../x", "a/../b", "a/b/c", "a/", "/a"})
        EXPECT_FALSE(parse_image_id(text)) << text;
    EXPECT_TRUE(parse_image_id("a\\x2db@c.service/20260102T030405.000001Z"));
}

TEST_F(Store, AWritableRootOrUnitDirectoryIsRefused) {
    ImageId id = put("a.service");
    ASSERT_EQ(chmod((root + "/a.service").c_str(), 0777), 0);
    EXPECT_EQ(store.open_image(id).error().kind, ErrorKind::kDenied);
    ASSERT_EQ(chmod(root.c_str(), 0770), 0);
    EXPECT_EQ(ImageStore::open(root, false).error().kind, ErrorKind::kDenied);
    ASSERT_EQ(symlink(root.c_str(), (tmp.path() + "/link").c_str()), 0);
    EXPECT_FALSE(ImageStore::open(tmp.path() + "/link", false));
}

}  // namespace
}  // namespace checkpointd::images
