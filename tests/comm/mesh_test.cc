// --mesh: what is read, what is refused, and where a rank stands.
#include "comm/mesh.h"

#include "tests/model/scratch.h"

#include <gmock/gmock-matchers.h>
#include <gtest/gtest.h>

namespace kvmesh {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using test::error_of;

TEST(Mesh, NothingSaidIsOneAxisOfAllRanks) {
  const Mesh mesh = Mesh::parse("", 6);
  EXPECT_EQ(mesh.axes(), (std::vector<Mesh::Axis>{{"x", 6}}));
  EXPECT_EQ(mesh.ranks(), 6);
  EXPECT_EQ(to_string(mesh), "x=6");
}

TEST(Mesh, AxesInTheirOrder) {
  const Mesh mesh = Mesh::parse("x=2,model_1=3,y=1", 6);
  EXPECT_EQ(mesh.axes(), (std::vector<Mesh::Axis>{{"x", 2}, {"model_1", 3}, {"y", 1}}));
  EXPECT_EQ(to_string(mesh), "x=2,model_1=3,y=1");
  EXPECT_TRUE(mesh.has("model_1"));
  EXPECT_FALSE(mesh.has("model"));
  EXPECT_EQ(mesh.size("model_1"), 3);
  EXPECT_THAT(error_of([&] { mesh.size("z"); }), AllOf(HasSubstr("x=2,model_1=3,y=1"), HasSubstr("no axis z")));
}

TEST(Mesh, CoordinatesAreRowMajor) {
  const Mesh mesh = Mesh::parse("a=2,b=3,c=2", 12);
  int rank = 0;
  for (int a = 0; a < 2; ++a) {
    for (int b = 0; b < 3; ++b) {
      for (int c = 0; c < 2; ++c, ++rank) {
        EXPECT_EQ(mesh.coordinate("a", rank), a) << rank;
        EXPECT_EQ(mesh.coordinate("b", rank), b) << rank;
        EXPECT_EQ(mesh.coordinate("c", rank), c) << rank;
      }
    }
  }
  EXPECT_THAT(error_of([&] { mesh.coordinate("a", 12); }), HasSubstr("rank 12 is not on the mesh"));
  EXPECT_THAT(error_of([&] { mesh.coordinate("a", -1); }), HasSubstr("rank -1 is not on the mesh"));
  EXPECT_THAT(error_of([&] { mesh.coordinate("d", 0); }), HasSubstr("no axis d"));
}

TEST(Mesh, WhatIsNoMeshIsNamed) {
  for (const char* text : {"x", "x=", "=2", "x=two", "x=2 ", " x=2", "x=+2", "x=2.0", "x=0", "x=-2", "x=99999999999", "2x=2", "x-y=2", "x=2,", ",x=2", "x=2,,y=1", "x=2;y=1", "x==2"}) {
    EXPECT_THAT(error_of([&] { Mesh::parse(text, 2); }), AllOf(HasSubstr(std::string("--mesh ") + text), HasSubstr("as in x=4"))) << text;
  }
  EXPECT_THAT(error_of([] { Mesh::parse("x=1,y=2,x=1", 2); }), AllOf(HasSubstr("--mesh x=1,y=2,x=1"), HasSubstr("axis x is there twice")));
}

TEST(Mesh, SizesMustMultiplyToTheRanks) {
  EXPECT_THAT(error_of([] { Mesh::parse("x=3", 2); }), AllOf(HasSubstr("--mesh x=3"), HasSubstr("multiply to 3"), HasSubstr("the job has 2 ranks")));
  EXPECT_THAT(error_of([] { Mesh::parse("x=2,y=2", 1); }), AllOf(HasSubstr("multiply to 4"), HasSubstr("the job has 1 rank")));
  // 2³² · 2³² would be 0 in 64 bits, and 2³² is 0 in 32.
  EXPECT_THAT(error_of([] { Mesh::parse("a=65536,b=65536,c=65536,d=65536", 0); }), HasSubstr("--mesh"));
  EXPECT_THAT(error_of([] { Mesh::parse("a=65536,b=65536", 1); }), HasSubstr("--mesh"));
}

}  // namespace
}  // namespace kvmesh
