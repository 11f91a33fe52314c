#include "kinds.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "cases.h"

namespace dgc {
namespace {

std::string message(const std::string& description) {
  try {
    make_codec(description);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Descriptions, KindsThatAnErrorAllowsAreKnown) {
  const std::vector<std::string> kinds = test::allowed(message("unheard n=1"));
  EXPECT_GE(kinds.size(), 5u);
  for (const std::string& kind : kinds) EXPECT_EQ(message(kind).find("codec is"), std::string::npos) << kind;
}

TEST(Descriptions, AreRefusedWithWhatIsWrong) {
  EXPECT_EQ(message("unheard n=1").substr(0, 36), "codec is 'unheard'; allowed: coordin");
  EXPECT_EQ(message("random n=10 k=11 values=float32 factor=1"), "k is 11; allowed: 1 to 10");
  EXPECT_EQ(message("random n=10 k=1 values=float32 factor=x"), "factor is x; allowed: 0 to 1e+09");
  EXPECT_EQ(message("random n=10 k=1 values=float32"), "factor is missing; allowed: a value for random");
  EXPECT_EQ(message("random n=10 k=1 values=float32 factor=1 far=1"),
            "setting is far=1; allowed: none of this name for random");
  EXPECT_EQ(message("coordinates n=9 k=2 indices=int32 values=ternary select=ternarise clip=1 shared=0"),
            "k is 2 of n=9 with select=ternarise, which selects nothing; allowed: n");
  EXPECT_EQ(message("coordinates n=9 k=9 indices=int32 values=float32 select=ternarise clip=1 shared=0"),
            "values is float32; allowed with this select: ternary");
  EXPECT_EQ(message("random n=10 n=10"), "setting is n=10; allowed: each name once");
}

}  // namespace
}  // namespace dgc
