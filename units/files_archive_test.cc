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

}  // namespace
}  // namespace checkpointd
