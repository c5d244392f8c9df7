// Facts of well and of planted faults, and what is found in them; reading GPUs from the driver's folder, and hashing a part of a large file.
#include "launch/job/findings.h"
#include "model/checkpoint.h"

#include "tests/model/scratch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

namespace kvmesh {
namespace {

constexpr std::int64_t gigabyte = 1'000'000'000;

// Two hosts with 8 cores and 4 GPUs each, 4 ranks on each of them.
std::vector<Facts> healthy() {
  std::vector<Facts> all(8);
  for (int r = 0; r < 8; ++r) {
    Facts& f = all[static_cast<std::size_t>(r)];
    f.rank = f.told_rank = r;
    f.size = f.told_size = 8;
    f.told_by = "OMPI_COMM_WORLD_SIZE";
    f.host = r / 4 * 4;
    f.host_name = r < 4 ? "h1" : "h2";
    f.version = "0.1.0";
    f.build = "b1";
    f.mpi = "Open MPI v4.1.4";
    f.binary = "p1";
    f.options = {{"seed", "0"}, {"batch-size", "32"}};
    f.nccl = {{"NCCL_ALGO", "Ring"}};
    f.files = {{"config.json", "c1"}, {"model.safetensors", "w1"}, {"tokenizer.tiktoken", "t1"}};
    f.prompts = "q1";
    f.cpus = {0, 1, 2, 3, 4, 5, 6, 7};
    f.launcher_cpus = 8;
    f.cgroup = "/job";
    f.threads = 2;
    f.device = "cpu/avx2";
    for (int g = 0; g < 4; ++g) f.gpus.push_back(f.host_name + "-GPU-" + std::to_string(g));
    f.interfaces = {"eth0", "ib0", "lo"};
    f.available = 100 * gigabyte;
    f.shm_free = gigabyte;
    f.mapped = gigabyte;
    f.files_limit = 1024;
    f.files_open = 20;
    f.weights = 10 * gigabyte;
    f.workspace = gigabyte;
    f.row_bytes = 100'000'000;
    f.token_bytes = 900'000;
    f.places = 4;
    f.seqlen = 1000;
  }
  all[0].rows = 100;
  all[0].row_tokens = 500;
  all[0].output_bytes = gigabyte;
  all[0].output_free = 10 * gigabyte;
  return all;
}

std::vector<Facts> on_gpus() {
  std::vector<Facts> all = healthy();
  for (Facts& f : all) f.device = "cuda/sm_90";
  return all;
}

// Exactly one finding, of that kind, with all parts in its text.
void expect_one(const std::vector<Facts>& facts, Severity severity, std::initializer_list<const char*> parts) {
  const std::vector<Finding> found = findings(facts);
  ASSERT_EQ(found.size(), 1u) << (found.empty() ? "" : found[0].text + "\n" + found.back().text);
  EXPECT_EQ(found[0].severity, severity) << found[0].text;
  EXPECT_EQ(found[0].text.find('\n'), std::string::npos);
  for (const char* part : parts) EXPECT_NE(found[0].text.find(part), std::string::npos) << part << " is not in: " << found[0].text;
}

void plant(const std::function<void(std::vector<Facts>&)>& fault, Severity severity, std::initializer_list<const char*> parts, std::vector<Facts> facts = healthy()) {
  fault(facts);
  expect_one(facts, severity, parts);
}

TEST(Findings, NoneWhereAllIsWell) {
  EXPECT_TRUE(findings(healthy()).empty());
  EXPECT_TRUE(findings(on_gpus()).empty());
  EXPECT_TRUE(findings(std::vector<Facts>(3)).empty()) << "what was not looked at is no fault";
}

TEST(Findings, FactsTravelAsBytes) {
  Facts f = healthy()[5];
  f.quota = 1.5;
  f.errors = {"not UTF-8: \xff"};
  f.sees_output = false;
  const Facts g = facts_of(to_bytes(f));
  EXPECT_EQ(to_bytes(g), to_bytes(facts_of(to_bytes(g))));
  EXPECT_EQ(g.cpus, f.cpus);
  EXPECT_EQ(g.files, f.files);
  EXPECT_EQ(g.quota, 1.5);
  EXPECT_EQ(g.available, f.available);
  EXPECT_FALSE(g.sees_output);
  EXPECT_EQ(g.errors, std::vector<std::string>{"not UTF-8: \xEF\xBF\xBD"});
  EXPECT_EQ(facts_of("{\"rank\":3,\"of_another_version\":[]}").rank, 3);
}

TEST(Findings, RanksThatThinkTheyAreAlone) {
  Facts alone = healthy()[0];
  alone.size = 1;
  expect_one({alone}, Severity::error, {"OMPI_COMM_WORLD_SIZE says 8", "brought 1 together", "--mpi=pmix"});
  alone.told_size = -1;
  EXPECT_TRUE(findings({{alone}}).empty());
  alone.slurm_tasks = 8;
  expect_one({alone}, Severity::warning, {"8 tasks", "srun"});
}

TEST(Findings, Gpus) {
  plant([](auto& f) { f[5].gpus = f[7].gpus = {"h2-GPU-3"}; }, Severity::error, {"ranks 5, 7 on h2 would share one GPU (h2-GPU-3)"}, on_gpus());
  plant([](auto& f) { for (std::size_t r = 0; r < 4; ++r) f[r].gpus = {"h1-GPU-0", "h1-GPU-1"}; }, Severity::error, {"h1 has 2 GPUs for 4 ranks", "CUDA_VISIBLE_DEVICES"}, on_gpus());
  plant([](auto& f) { f[4].gpus = {"h1-GPU-0"}; }, Severity::error, {"rank 0 on h1, rank 4 on h2 would share one GPU"}, on_gpus());  // containers of one machine
  std::vector<Facts> own = on_gpus();
  for (Facts& f : own) f.gpus = {f.gpus[static_cast<std::size_t>(3 - f.rank % 4)]};
  EXPECT_TRUE(findings(own).empty()) << "each rank sees its own";
  own = on_gpus();
  own[5].gpus = {"h2-GPU-3"};
  EXPECT_TRUE(findings(own).empty()) << "rank 7 takes what rank 5 has left";
  own[6].gpus = {"h2-GPU-3"};
  for (Facts& f : own) f.share_gpus = true;
  EXPECT_TRUE(findings(own).empty()) << "--share-gpus";
  own = on_gpus();
  for (Facts& f : own) f.gpus.clear();
  EXPECT_TRUE(findings(own).empty()) << "the driver does not say";
}

TEST(Findings, Cores) {
  plant([](auto& f) { f[2].threads = 4; }, Severity::warning, {"ranks 0-3 on h1", "10 threads on 8 cores"});
  plant([](auto& f) { f[6].cpus = {3}; }, Severity::warning, {"rank 6 on h2", "2 threads on 1 core"});
  plant([](auto& f) { for (std::size_t r = 4; r < 8; ++r) f[r].cpus = {0, 1}, f[r].launcher_cpus = 2; }, Severity::warning, {"ranks 4-7 on h2", "8 threads on 2 cores"});
  plant([](auto& f) { f[4].cpus = f[7].cpus = {0, 1}; }, Severity::warning, {"ranks 4, 7 on h2", "4 threads on 2 cores"});
  plant([](auto& f) { f[4].cpus = f[5].cpus = {0, 1}, f[6].cpus = {1}; }, Severity::warning, {"ranks 4-6 on h2", "6 threads on 2 cores"});
  plant([](auto& f) { f[4].cpus = f[5].cpus = {0}, f[4].threads = f[5].threads = 1; }, Severity::warning, {"ranks 4-5 on h2", "2 threads on 1 core"});
  plant([](auto& f) { for (std::size_t r = 4; r < 8; ++r) f[r].quota = 2.5; }, Severity::warning, {"ranks 4-7 on h2", "8 threads on 2.5 cores", "quota"});
  plant([](auto& f) { for (std::size_t r = 0; r < 4; ++r) f[r].cpus = {static_cast<int>(r)}, f[r].threads = 1; }, Severity::warning, {"ranks 0-3 on h1", "one core each", "4 of the 8 cores", "--bind-to none"});
  plant([](auto& f) { for (std::size_t r = 0; r < 4; ++r) f[r].cpus = {0, 1, 2}, f[r].launcher_cpus = 3, f[r].threads = 1; }, Severity::note, {"ranks 0-3 on h1", "4 threads on 3 cores"});
  std::vector<Facts> bound = healthy();  // two cores each: as good as not bound
  for (Facts& f : bound) f.cpus = {f.rank % 4 * 2, f.rank % 4 * 2 + 1};
  EXPECT_TRUE(findings(bound).empty());
}

TEST(Findings, Network) {
  const auto everywhere = [](const char* value) { return [value](std::vector<Facts>& all) { for (Facts& f : all) f.nccl_interface = value; }; };
  plant(everywhere("nosuch0"), Severity::error, {"NCCL_SOCKET_IFNAME=nosuch0", "all ranks", "eth0, ib0, lo"}, on_gpus());
  plant(everywhere("nosuch0"), Severity::note, {"NCCL_SOCKET_IFNAME=nosuch0"});
  plant(everywhere("=ib"), Severity::error, {"=ib "}, on_gpus());
  plant(everywhere("^eth,ib,lo"), Severity::error, {"^eth,ib,lo "}, on_gpus());
  plant(everywhere("lo"), Severity::error, {"loopback", "all ranks"}, on_gpus());
  plant(everywhere("^eth,ib"), Severity::error, {"loopback"}, on_gpus());
  for (const char* good : {"eth", "ib0,eth1", "=eth0", "^lo", "^docker,eth"}) {
    std::vector<Facts> all = on_gpus();
    everywhere(good)(all);
    EXPECT_TRUE(findings(all).empty()) << good;
  }
  plant([](auto& f) { for (std::size_t r = 0; r < 8; ++r) f[r].nccl_interface = "ib0"; for (std::size_t r = 4; r < 8; ++r) f[r].interfaces = {"eth0", "lo"}; }, Severity::error, {"ranks 4-7 on h2", "eth0, lo"}, on_gpus());
  plant([](auto& f) { f[3].nccl.clear(); f[3].nccl["NCCL_DEBUG"] = "INFO"; f[3].nccl["NCCL_ALGO"] = "Ring"; }, Severity::warning, {"NCCL_DEBUG", "none on", "INFO on rank 3 on h1"}, on_gpus());
  EXPECT_TRUE(findings([] { auto all = healthy(); all[3].nccl["NCCL_ALGO"] = "Tree"; return all; }()).empty()) << "without a GPU";
}

TEST(Findings, WhatShouldBeTheSame) {
  plant([](auto& f) { f[6].build = "b2"; f[6].binary = "p2"; }, Severity::error, {"the program differs", "b2) on rank 6 on h2", "ranks 0-3 on h1, ranks 4-5, 7 on h2"});
  plant([](auto& f) { for (std::size_t r = 4; r < 8; ++r) f[r].binary = "p2"; }, Severity::error, {"the program's file differs", "p1 on ranks 0-3 on h1; p2 on ranks 4-7 on h2"});
  plant([](auto& f) { f[4].mpi = "Open MPI v5"; }, Severity::warning, {"MPI differs", "v5 on rank 4"});
  plant([](auto& f) { f[1].device = "cpu/avx512"; }, Severity::error, {"the device differs", "cpu/avx512 on rank 1", "KVMESH_CPU_ISA"});
  plant([](auto& f) { f[7].options["seed"] = "9"; }, Severity::error, {"--seed differs", "9 on rank 7 on h2", "--config"});
  plant([](auto& f) { f[7].options["prompt (0)"] = "\"a\""; }, Severity::error, {"prompt (0) differs", "\"a\" on rank 7", "none on"});
  plant([](auto& f) { f[7].files["config.json"] = "c2"; }, Severity::error, {"config.json differs", "c2 on rank 7"});
  plant([](auto& f) { for (std::size_t r = 4; r < 8; ++r) f[r].files["model.safetensors"] = "w2"; }, Severity::error, {"model.safetensors differs", "w2 on ranks 4-7 on h2"});
  plant([](auto& f) { f[0].files.erase("tokenizer.tiktoken"); }, Severity::error, {"tokenizer.tiktoken differs", "none on rank 0"});
  plant([](auto& f) { f[5].prompts = "q2"; }, Severity::warning, {"prompts' file differs", "q2 on rank 5"});
  std::vector<Facts> seen_by_one = healthy();
  for (std::size_t r = 1; r < 8; ++r) seen_by_one[r].prompts.clear();
  EXPECT_TRUE(findings(seen_by_one).empty()) << "only rank 0 reads the prompts";
}

TEST(Findings, Memory) {  // of h1: 10 GB of weights, 4 of workspaces, a cache of 4 GB a rank
  plant([](auto& f) { f[1].available = 13 * gigabyte; }, Severity::error, {"h1", "weights and workspaces need 14 GB", "13 GB"});
  plant([](auto& f) { for (Facts& r : f) r.available = 21 * gigabyte; }, Severity::error, {"h1", "16 rows of up to 500 tokens need 23 GB", "--batch-size"}, [] {
    std::vector<Facts> all = healthy();
    for (std::size_t r = 4; r < 8; ++r) all[r].places = 0;
    return all;
  }());
  plant([](auto& f) { f[5].available = 29 * gigabyte; }, Severity::warning, {"h2", "16 rows would need 30 GB", "1000 tokens", "29 GB"});
  plant([](auto& f) { f[5].available = 21 * gigabyte; f[0].rows = -1; }, Severity::warning, {"h2", "would need 30 GB"});
  std::vector<Facts> enough = healthy();
  for (Facts& f : enough) f.available = 30 * gigabyte;
  EXPECT_TRUE(findings(enough).empty());
  plant([](auto& f) { f[0].rows = 2; for (Facts& r : f) r.available = 21 * gigabyte; for (std::size_t r = 4; r < 8; ++r) f[r].available = -1; }, Severity::warning, {"16 rows would need"});
}

TEST(Findings, SmallPages) {
  plant([](auto& f) { for (std::size_t r = 4; r < 8; ++r) f[r].small_pages = true; }, Severity::note, {"h2: 4 ranks share weights", "shmem_enabled"});
  std::vector<Facts> fine = healthy();
  for (Facts& f : fine) f.small_pages = true, f.weights = 1'000'000;
  EXPECT_TRUE(findings(fine).empty()) << "weights that caches hold";
  fine = healthy();
  fine.resize(1);
  fine[0].size = fine[0].told_size = 1;
  fine[0].small_pages = true;
  EXPECT_TRUE(findings(fine).empty()) << "alone on its host";
}

TEST(Findings, Limits) {
  plant([](auto& f) { f[3].address_space = 15 * gigabyte; }, Severity::error, {"rank 3 on h1", "15 GB", "16 GB are needed", "ulimit -v"});  // mapped, weights, workspace, cache: 1 + 10 + 1 + 4
  plant([](auto& f) { f[3].files_limit = 59; }, Severity::error, {"rank 3 on h1", "59 files", "may need 60", "ulimit -n"});
  plant([](auto& f) { f[3].locked_limit = 64 << 10; }, Severity::warning, {"rank 3 on h1", "66 kB", "InfiniBand"});
  plant([](auto& f) { for (std::size_t r = 4; r < 8; ++r) f[r].shm_free = 32'000'000; }, Severity::warning, {"h2", "/dev/shm", "4 ranks"});
  std::vector<Facts> enough = healthy();
  for (Facts& f : enough) f.address_space = 17 * gigabyte, f.files_limit = 60, f.locked_limit = gigabyte, f.shm_free = 34'000'000;
  EXPECT_TRUE(findings(enough).empty());
}

TEST(Findings, ClocksAndOutput) {
  plant([](auto& f) { for (std::size_t r = 4; r < 8; ++r) f[r].clock_ahead = -3.25; }, Severity::warning, {"ranks 4-7 on h2", "3.2 s behind rank 0's (h1)"});
  plant([](auto& f) { f[0].output_free = gigabyte / 2; }, Severity::warning, {"rank 0 on h1", "1.0 GB", "500 MB are free"});
  plant([](auto& f) { for (std::size_t r = 4; r < 8; ++r) f[r].sees_output = false; }, Severity::warning, {"ranks 4-7 on h2", "--output", "rank 0 on h1", "shared file system"});
}

TEST(Findings, WhatRanksNotedComesOnceAndErrorsFirst) {
  std::vector<Facts> all = healthy();
  all[3].warnings = {"a small thing"};
  all[1].errors = all[2].errors = all[6].errors = {"no checkpoint"};
  const std::vector<Finding> found = findings(all);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].text, "ranks 1-2 on h1, rank 6 on h2: no checkpoint");
  EXPECT_EQ(found[0].severity, Severity::error);
  EXPECT_EQ(found[1].text, "rank 3 on h1: a small thing");
  EXPECT_EQ(found[1].severity, Severity::warning);
}

TEST(Facts, VisibleGpus) {
  const test::Scratch scratch;
  EXPECT_TRUE(visible_gpus(scratch.path() / "none", nullptr).empty());
  for (const char* gpu : {"0000:81:00.0 B", "0000:01:00.0 A", "0001:01:00.0 C"}) {
    const std::string words = gpu;
    std::filesystem::create_directory(scratch.path() / words.substr(0, 12));
    scratch.write(words.substr(0, 12) + "/information", "Model: \t\t NVIDIA H100\nIRQ:   \t\t 18\nGPU UUID: \t GPU-" + words.substr(13) + "\nVideo BIOS: 1\n");
  }
  const auto seen = [&](const char* visible) { return visible_gpus(scratch.path(), visible); };
  using Gpus = std::vector<std::string>;
  EXPECT_EQ(seen(nullptr), (Gpus{"GPU-A", "GPU-B", "GPU-C"}));
  EXPECT_EQ(seen("2,0"), (Gpus{"GPU-C", "GPU-A"}));
  EXPECT_EQ(seen("1,1"), (Gpus{"GPU-B", "GPU-B"}));
  EXPECT_EQ(seen("GPU-B"), (Gpus{"GPU-B"}));
  EXPECT_EQ(seen("0,7,1"), (Gpus{"GPU-A"}));
  EXPECT_EQ(seen("-1"), Gpus{});
  EXPECT_EQ(seen(""), Gpus{});
}

TEST(FileHash, OfAPartOfALargeFile) {
  const test::Scratch scratch;
  std::string bytes(10 << 20, '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 2654435761u >> 13);
  const std::string whole = file_hash(scratch.write("a", bytes)), part = file_hash(scratch.path() / "a", 4 << 20);
  EXPECT_EQ(file_hash(scratch.path() / "a", 10 << 20 | 1), whole);
  EXPECT_EQ(file_hash(scratch.write("b", bytes), 4 << 20), part);
  EXPECT_NE(part, whole);
  bytes[5] ^= 1;
  EXPECT_NE(file_hash(scratch.write("b", bytes), 4 << 20), part);
  bytes[5] ^= 1;
  bytes[2 << 20] ^= 1;  // between the blocks that are read
  EXPECT_EQ(file_hash(scratch.write("b", bytes), 4 << 20), part);
  EXPECT_NE(file_hash(scratch.path() / "b"), whole);
  bytes.pop_back();
  bytes[2 << 20] ^= 1;
  EXPECT_NE(file_hash(scratch.write("b", bytes), 4 << 20), part);
}

}  // namespace
}  // namespace kvmesh
