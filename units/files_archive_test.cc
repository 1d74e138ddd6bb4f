// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/files_archive.h"

#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core/base/io.h"
#include "units/tar.h"

namespace checkpointd {
namespace {

namespace fs = std::filesystem;

class ArchiveTest : public ::testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/archive-test-XXXXXX";
        ASSERT_NE(mkdtemp(name), nullptr);
        base_ = name;
        run_ = base_ + "/run";
        fs::create_directory(run_);
        facts_.directories = {{run_}};
        archive_ = ScopedFd(memfd_create("archive", MFD_CLOEXEC));
    }
    void TearDown() override { fs::remove_all(base_); }

    Result<void> save() { return save_unit_files(facts_, getpid(), archive_.get()); }
    Result<void> put_back() {
        lseek(archive_.get(), 0, SEEK_SET);
        return restore_unit_files(facts_, getpid(), archive_.get());
    }
    void add_member(const TarEntry& entry, const std::string& content = "") {
        std::string text = tar_header(entry) + content + std::string(tar_padding(content.size()), '\0');
        ASSERT_TRUE(write_all(archive_.get(), text.data(), text.size(), "archive"));
    }
    void end_archive() {
        std::string end = tar_end();
        ASSERT_TRUE(write_all(archive_.get(), end.data(), end.size(), "archive"));
    }

    std::string base_, run_;
    UnitFacts facts_;
    ScopedFd archive_;
};

std::string content(const std::string& path) {
    return read_file(AT_FDCWD, path).value_or("(none)");
}

TEST_F(ArchiveTest, TreeComesBackAsItWas) {
    std::string long_name(200, 'n');
    fs::create_directories(run_ + "/a/b");
    std::ofstream(run_ + "/a/b/data") << std::string(100'000, 'x') << "end";
    std::ofstream(run_ + "/empty") << "";
    std::ofstream(run_ + "/" + long_name) << "long";
    fs::create_symlink("../" + long_name, run_ + "/a/link");
    ASSERT_EQ(mkfifo((run_ + "/fifo").c_str(), 0600), 0);
    chmod((run_ + "/a/b/data").c_str(), 04751);
    chmod((run_ + "/a").c_str(), 01733);
    chmod(run_.c_str(), 02755);
    ScopedFd socket_fd(socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/sock", run_.c_str());
    ASSERT_EQ(bind(socket_fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_TRUE(save());

    fs::remove_all(run_);
    fs::create_directory(run_);  // as systemd does: fresh and empty
    auto done = put_back();
    ASSERT_TRUE(done) << done.error().text();
    EXPECT_EQ(content(run_ + "/a/b/data"), std::string(100'000, 'x') + "end");
    EXPECT_EQ(content(run_ + "/empty"), "");
    EXPECT_EQ(content(run_ + "/" + long_name), "long");
    EXPECT_EQ(fs::read_symlink(run_ + "/a/link"), "../" + long_name);
    EXPECT_TRUE(fs::is_fifo(run_ + "/fifo"));
    struct stat status;
    ASSERT_EQ(stat((run_ + "/a/b/data").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777u, 04751u);
    ASSERT_EQ(stat((run_ + "/a").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777u, 01733u);
    ASSERT_EQ(stat(run_.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777u, 02755u);
    EXPECT_FALSE(fs::exists(run_ + "/sock")) << "its owner binds it anew";
    ASSERT_TRUE(put_back()) << "twice is as good as once";
}

TEST_F(ArchiveTest, HolesLinksAttributesAndTimesComeBack) {
    std::string sparse = run_ + "/sparse", attribute("value\nwith\0everything", 21);
    {
        ScopedFd file(open(sparse.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        ASSERT_EQ(pwrite(file.get(), "begin", 5, 0), 5);
        ASSERT_EQ(pwrite(file.get(), "end", 3, 3'000'000'000), 3);
        ASSERT_EQ(ftruncate(file.get(), 4'000'000'000), 0);
    }
    std::ofstream(run_ + "/hollow") << "";
    ASSERT_EQ(truncate((run_ + "/hollow").c_str(), 1'000'000), 0);
    std::ofstream(run_ + "/one") << "same";
    fs::create_hard_link(run_ + "/one", run_ + "/two");
    bool has_attributes = setxattr((run_ + "/one").c_str(), "user.a", attribute.data(), attribute.size(), 0) == 0;
    timespec times[2] = {{1'234'567, 89}, {1'234'567, 89}};
    ASSERT_EQ(utimensat(AT_FDCWD, (run_ + "/one").c_str(), times, 0), 0);
    ASSERT_TRUE(save());
    EXPECT_LT(lseek(archive_.get(), 0, SEEK_END), 100'000) << "holes take no room";

    fs::remove_all(run_);
    fs::create_directory(run_);
    for (int round = 0; round < 2; ++round) {
        auto done = put_back();
        ASSERT_TRUE(done) << done.error().text();
    }
    struct stat one, two, big;
    ASSERT_EQ(stat((run_ + "/one").c_str(), &one), 0);
    ASSERT_EQ(stat((run_ + "/two").c_str(), &two), 0);
    EXPECT_EQ(one.st_ino, two.st_ino);
    EXPECT_EQ(one.st_mtim.tv_sec, 1'234'567);
    EXPECT_EQ(one.st_mtim.tv_nsec, 89);
    ASSERT_EQ(stat(sparse.c_str(), &big), 0);
    EXPECT_EQ(big.st_size, 4'000'000'000);
    EXPECT_LT(big.st_blocks * 512, 1'000'000);
    EXPECT_EQ(fs::file_size(run_ + "/hollow"), 1'000'000u);
    ScopedFd file(open(sparse.c_str(), O_RDONLY | O_CLOEXEC));
    char text[6] = {};
    ASSERT_EQ(pread(file.get(), text, 3, 3'000'000'000), 3);
    EXPECT_STREQ(text, "end");
    if (has_attributes) {
        std::string value(100, '\0');
        ssize_t size = getxattr((run_ + "/two").c_str(), "user.a", value.data(), value.size());
        ASSERT_GE(size, 0);
        EXPECT_EQ(value.substr(0, static_cast<size_t>(size)), attribute);
    }
}

TEST_F(ArchiveTest, OtherProgramsReadIt) {
    std::ofstream(run_ + "/file") << "hello";
    ASSERT_TRUE(save());
    std::string command = fmt::format("tar -tPf /proc/{}/fd/{}", getpid(), archive_.get());
    std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
    char text[1024] = {};
    size_t size = fread(text, 1, sizeof(text) - 1, pipe.get());
    EXPECT_EQ(std::string(text, size), run_ + "\n" + run_ + "/file\n");
}

TEST_F(ArchiveTest, NothingIsWrittenOutsideOfTheUnitsDirectories) {
    fs::create_directory(base_ + "/outside");
    struct { std::string path; } bad[] = {{base_ + "/outside/x"},
                                          {run_ + "/../outside/x"},
                                          {run_ + "/.."},
                                          {run_ + "/door/x"},
                                          {run_ + "x"}};
    fs::create_directory_symlink(base_ + "/outside", run_ + "/door");
    std::ofstream(base_ + "/outside/secret") << "theirs";
    add_member({run_ + "/link", TarType::kHardLink, base_ + "/outside/secret"});
    end_archive();
    EXPECT_FALSE(put_back()) << "a link that leads out";
    fs::remove(base_ + "/outside/secret");
    for (const auto& [path] : bad) {
        ASSERT_EQ(ftruncate(archive_.get(), 0), 0);
        lseek(archive_.get(), 0, SEEK_SET);
        add_member({path, TarType::kFile, "", 0644, 0, 0, 0, 4}, "evil");
        end_archive();
        EXPECT_FALSE(put_back()) << path;
    }
    EXPECT_TRUE(fs::is_empty(base_ + "/outside"));
}

TEST_F(ArchiveTest, DamageIsRefused) {
    std::ofstream(run_ + "/file") << "hello";
    ASSERT_TRUE(save());
    off_t size = lseek(archive_.get(), 0, SEEK_END);
    for (off_t at : {off_t{3}, off_t{160}, off_t{512 + 10}}) {
        char byte = 0;
        ASSERT_EQ(pread(archive_.get(), &byte, 1, at), 1);
        char wrong = static_cast<char>(byte ^ 0x15);
        ASSERT_EQ(pwrite(archive_.get(), &wrong, 1, at), 1);
        auto refused = put_back();
        EXPECT_FALSE(refused) << at;
        ASSERT_EQ(pwrite(archive_.get(), &byte, 1, at), 1);
    }
    ASSERT_EQ(ftruncate(archive_.get(), size - 1024), 0);
    EXPECT_FALSE(put_back()) << "an archive without its end";
}

TEST_F(ArchiveTest, PidFileIsWrittenBack) {
    facts_.pid_file = base_ + "/unit.pid";
    facts_.pid_file_content = "4711\n";
    ASSERT_TRUE(save());
    ASSERT_TRUE(put_back());
    EXPECT_EQ(content(facts_.pid_file), "4711\n");
}

TEST_F(ArchiveTest, PidFileIsCorrected) {
    facts_.pid_file = base_ + "/unit.pid";
    EXPECT_TRUE(correct_pid_file(facts_, 12)) << "there is none";
    std::ofstream(facts_.pid_file) << "4711";
    const auto before = fs::last_write_time(facts_.pid_file);
    ASSERT_TRUE(correct_pid_file(facts_, 4711));
    EXPECT_EQ(content(facts_.pid_file), "4711");
    EXPECT_EQ(fs::last_write_time(facts_.pid_file), before);
    ASSERT_TRUE(correct_pid_file(facts_, 12));
    EXPECT_EQ(content(facts_.pid_file), "12\n");
    std::ofstream(base_ + "/other") << "its own";
    fs::remove(facts_.pid_file);
    fs::create_symlink(base_ + "/other", facts_.pid_file);
    EXPECT_FALSE(correct_pid_file(facts_, 12)) << "a link leads anywhere";
    EXPECT_EQ(content(base_ + "/other"), "its own");
}

}  // namespace
}  // namespace checkpointd
