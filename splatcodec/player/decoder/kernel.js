// Made by tools/player_kernel/build.mjs from kernel.src there. Not to be changed by hand.

/** A WebAssembly module of 10197 bytes, deflated, in base64. */
export const KERNEL =
  "3VpdbBzXdb53ZnZ3dmd/huRSIjmi+J0hJa1ESqIki6JsWeSVKHm1lmT5J2l+URmSAmeWjkNqxSAQ0R20AeoWftCDXaiOWtCUUQRFYOQhkAo4cF" +
  "WgD0WRh6Bo2gBFUbXoQx4KRA2CJmi1YXnunVmStoLmIU8VxLnnnvt3/u4955674tXrr0shhHy1ctlqt2X7cqbN/7qAYLS4LBnjtpN/sn1ZLsvl" +
  "y1abv0572XQRl209wk7H6S4pwqpI+9pXlrKvX3v9jcWvW0LafkVIy3Yy2ZybL3jFUjn3uutdvXbljavX5q59tfWakPn5L3+laWDL+dqr801hF0" +
  "yHV748f004Se/zr3792qLIFL+2+OXWtZeuXXlj8ep1kS/p6suvqcXFV79+XZTKST3tUC788ELlb7Oypw1RE7Eki8tvSLK5fFOSowRlIGBBIqOs" +
  "VkQu5cIsbOQWuBrma0JQAW5NiNBTuSUqwlNrYoFKKCpnKSyjrMTZiMooqLWRhbCCcp38dWQMlJvwAxRUcWkelUgJlOEHzbCg4tg5Rz3Io6D8Fp" +
  "yDQiyigJ5gSgg46FGyFZEDW8mIbLgoqrU1WwmerNhEScnWQRFX51XlRqRyLZRQUg9FPVrk4b4za88io2QUZtTOhjOr2hXv/xWDJeF5SlIWGWdW" +
  "WYY1FcsoYS9PbpiDDdewV2D2PDCXYZHZY7aYvTJKzF4FFc1ehbkeWQh9VOrUs46MgUoTPQE8zZ7P7FXQEzRDz7DXiwK8DfY89Cbs9W5lL49Swl" +
  "5PgFIT5Y+zxxLustcTUdZTMswhU9eqzCIbMZOUD13YyG+wxYT4C0qc1SorLimvxUxUFqKUxNLHSSwlJJa2kliMKIsc2wwvywKGgD0lviEh4EyJ" +
  "NyWySjYrwvuznERbxW6Y0dspi4zeTjku35TkcvmWpLxim5LkQcJSditiElE0HDk1MRCW1JpcoLKSVIFQ/XVnFhlkUd4v4l6UlLsUKaulHq/JiH" +
  "qpJ/SRQ49hvY81WkUvS6CfNboN/Vqj27GNNTqAAa3RAVS1RgcxUKehdWQMDDQxFKCqNTrIGh3AUNAMq0ZcAfpQZXG5WlxVBFpcLgItLleLiHLo" +
  "xbZEo0MBtjWx/eMa3Y7tGxodooqHiuYvp0WagatFmlHxH1i+4Dn9T8jRV7IOHzYKzcYiXOQbi8letuE3yYYHn2f3lJgSToaFun6yOerP5QL5XH" +
  "O59n25QD1c87n2SC5QrxLUpwRVlaB+lJXTUvG2SMswhz4lnouMkvrUD8UC/EX0K3l9SckF9KkjC+hhhKUREfpUZQG9jHEMhlXAA1rRQSGwXWVb" +
  "EarK5r96oHfnAGtZxbGFAV0PaCgcRA5DRrc7WLfDCFi3O1m3I9ipdQuMsG4JpHVLGNa6DUF1Gl1HxgA1MRpgWOs2ZN0SRoNmOGx0O4YdGN7Q7T" +
  "DGEt2ObdVtgJFEt6MBRprAx3ULYEO3ozSIPgyiv7VIfahiMKIqCyAKN8Spt1OfEmedWRVL6lOSqh7vBhR4Z2glom9KOCigGoUF2I3N+vbgKTci" +
  "D47awVuWt5Ge8mPmpOJfSt6zAoWK8P7Z0j5P+zapN2CWJW90u25rTphjnveL2Fdui/JwdYv7GrsCuEo2F8hFnjzFx6ZtxhWURLF1nY9QFCMUUD" +
  "RaL8NCmfXH2qvANhVUUKkJByWU4VCV+ngjk48e9PIw6oeHfvS1FsmDX+OjT0n0tnhpTZbNxoN+raayktep3J05g9xvZNoia4rZ0wK14U2JAdgs" +
  "ZxuuETLLPgOLcZaWIKO9f7Jkvq3it6xQBxQOT6Yh3oyweE+6piiawtfdtBGseyvB/XXhmMI1RREymcSvsBOwlWhoyVu8IRxnFs5rTA0cOMyQXr" +
  "YmHMrCQla5kV69xmvXhMsekdWT41pRfzTKKE338fVHu86liPLIsmUUnFlYqsoMJ/7BQsFwmE05ZNtzYbHpFWEhPyX8DCRjBSRjHUjGutBGyYyZ" +
  "sT4kTy09Fmq1adZoku2BmdXC/W5fpdKWy17bXnZvynb2ptu2bsq2dTPblstDbWuZ/Y9MwjmZhHPShHNcviUpw+Ut9k+yJt7mc1XWxG1JrnrQkW" +
  "ylefXXBiiovzGAp35mgKL6hQFK6rEByuqRASoqfizHhSBfCepR8Qf2+nka/9hbP1Hjbxapih4Is1WK3L2fC4e2ceHSdi6KNIAiDbIDjsISY/yz" +
  "NKQEShgK9MYaUtX5iIqqHwNNCtCP/kjJCEHrPu3ANmzr1obZzXRrO9GHHcdFLNePmrgnwnAKhxF2anhHp0ojGO5UCdjZqRLNCf3v0UynSuHcpZ" +
  "/82z/8+9Dzc51qOEpjGKVdGKXdSoR7VCwTn4A9UUcIgZHOf0qqpfW4B2DE3i4iBDFiH2qodX4qsRd7Oz+VnUcS+7CPEWHnEVfDcezh/v8tO5do" +
  "AqOY6PyXpP0a+LmkCeynUYyl2LEN7Bh2pdhdG9hd2G2wu7FH+ZGhXG/jUYx1SulNxO/p7av2b9uO3SHTV0puJpW0xK6QCf4E/pMz8Fr7sAu7nz" +
  "D5WDiO8SdMPhpOYOLXnXw/9nUCoSoLdIAhi6GD2J/gJhnSuEPY3yGJfR0SV5xZHKDDOEQHcJgOeSijJ1IOB1gM0WEcUAIHcLge0AEcBP8xfBCT" +
  "OIBJDU/iEA7gkIYPeehVk00cUJPzTTpsKgd15YipTOrKU6ZySFeOaruZNGZzODGbcApHErDzgcRTqTUd3UB2PpDK6nxb0jHswZ4onMaxzi9lxx" +
  "PxLQvTOBYex/EnyE53uaW7TJnKQ1MJn8bTv6r/o1sW9qTExV9KaYu/tIm4+EspdRrN/z0Rv22l9jWpzUsxdQPKbd0/LlYsJWhaCXpGCTqhBD2r" +
  "BJ1U8QOLZvhbExM0i5OpbGbGxTQpzNTEJJ3CLE4ZtMLsuBCYrQl3XIjVFVKY5RW5gzZolWzeyZnVO48tFcdx3NZfSWdoLjyNOZzGXCMIz+IMzu" +
  "JMPaDTOFnTtE/fCOfUmgR/6gHN4QSvP7aAZ7msLURKtrjTGe50xnQ6w02gs5jBdBrfncVctF/EiHgBhmoRPccBP9/74OG5dZxAji7QeXqeGnQu" +
  "rMPGORPpXWSP9gIHcXQJDZxXuVaESyqzxIPoRTyP8yrfivAirxa+dFAIehkvHRQWvYJLeOWiFtNLyoroJe4T0Yt4ZWsPLadX8HITL+iY8FKEl5" +
  "vhCyYc/BQu4oWNm9EL+FRyM/rU1pvRi8q/6Mxy0VTWEi/3aeXgRWUvRPh0CxeQxafps/SZ8LfwGWUvRZ0vajuf6pRsS4pcNuOkJR3DZ1RugT6H" +
  "Y51A4HMtLiV74xF8rrm0GH7ewJ9tLi3Sizwv3wSZtyX+LKj2/HWqs44fCEzfoHOo45xqz+Mcizds4Hk08HwjCC/gPC7gfD3AdIvqOI16RA2coG" +
  "dRR12N3Liuv006gV6cjHBiiq38pHLrzqyqoHHOmVW/U/Fw0pnFMzSdQYOe8Tw0ttjYBTofPo/zrKVGEF7EBVzEhXpADTNng2V5Eicj3hkRGveP" +
  "iwcSJxU4/Ollnzjt4aRyIjqJGb6704zeElplDjINZOF2LzwVDDSV3VLxIxGNi4dzpDQKzzRVoXVfvald8nv0BX3mJHfMXuyJasK9D38VX3gv2S" +
  "yXZlbvvLu+W4TaSXN0OjyF0ziF040gPIM5nMFcPaBTyCGLU+ku+j91Osc6PWt0enazTs+yTp8z8JnmEp3maTkMH9Skifs4fT+h6+HMinr4XYlT" +
  "ym41zX7/Iqr6BBwXP+hIfBFqdeW4EKhyOFrFHuVEmlctsB5ltfgYV05rEZPKbS3ikCq2FjGt/Nb6NSX+nyL6eGAfH9ER9XJIHIUcq+jxMrnqy+" +
  "SqL5GdErckx0MoTgnB8RBKDDzuSJQh+M6ixCZF6cxAIdeXxGmy7dwM0oybm2Tc8knGrcDlW5waEDpEK3L5tqQSl7clldMQrZKGaH4aovUoQb28" +
  "rHJamhskgUmvslo15pOq6EOmiSrfTDPzTepP685SitqWotwuanuKKnZRnD3wl2hQiXAoTcX0Y8g4sgDbEpB9xfYE5mTCJxzZDr7cRhiKaBg7EG" +
  "CYQCO0E9Aj+PtAYid7JBMgMSa2MdLFhNQ96jtVRt3oPJbhTuwIRzDyhPgi4EvyE/DDyo8INErh1rXDT6w9urH22BPW/mSkQiGGEJqjodPTuSfN" +
  "WdHp6fyF9pfvWFp0yBoxbduAU/GlTQNbmjofSBrFEEYx2Pm2VGtm8sQDD7E/HErSVcmxOHiDhpUgKEG7lKDdsDCoz/M9sKiG3UgussAu7eQGb4" +
  "R72cntNU5uL2rs5PZhD7u3fdit/WXi4/Zhb+LjxsF5gwr4zjmufVyJDtEkHaQDtD+cQB77jY87zD7uiPZxT3FspX3cU6mPO4qDmNQ+7qj2cVPs" +
  "445hij3YNJ7CtPFxU+x0prhPREcxvbWH3r/TONbEEe3jnopwrBkeMT7uOA7jCPu4gvZxR3Bc+7gCjmuZFJDnOfM4anzc0Q0f97RycFT7uKdbOI" +
  "QinqZn6UT4DE50z8MAwRPOwx04wefhSezg8/Bki8vkPDzJ5+GMgZ9lH3eU542o6DFvS/zRPi6cwDC7tWGWZ7gfB7AfBxpBOMniwsF6gMEWTQC0" +
  "CxOY0P5sQvszoA+72XoAZlNXWIPvWJiItnivXzExj9rNTomvD+yU9qCmS2M5WtYFeA0UUe46pz5kzMEqo5DPoyR5mk+SpwV9ogo+R29JJSrC+7" +
  "wll2Ubwuys2RGVgpdG1JWAZIr/K0hsVK4Ej63QUmu5BWW3xkU8CUsVbmz2iqsV4T0nrWXw0SyUaAT334Vc9bOh1d3E2ACvBqFtKr/8yQw2wCtB" +
  "RXhNKZc5nzEuxL1pIWAz6MLaJ8SH70HeNUiuhU4yoxBX4cwNN+787Pd/N1e/snDGmU1nFY9meICXMioezZjBd48L13vfK9jLmba9LNtS/2V1md" +
  "60pbptAEt9ywC2EqGjHiUXbac7Z5eQu8dF/JEFR8UfWVHa/Jebm104fHroWfTxISjDt/kwC6Em5yPK6fu8iyxySRa+Jsbuw141OZKaBgsMTmjQ" +
  "0zQlp4ujk6ofWRE4eKdSWEQJRY7nTXElYFeeIN2kuBoYsgbmqdgNC+Ze/+apS/9Y+rsZ7vKdxxL5VRTVdx7LiAcWVle6NR/e6srqCpXgonSc7a" +
  "NLhXogIpSoEpZRQZnJMIUhI0G6SWHIyMLR2dmy+s5HFsocSFGFn0bgm/F+d3yCdJPCjC/XRDX04evdyd9m6CMDH5lGQBm4HIwwszLSUtN7Jqsm" +
  "o5DlbWKSRAa3Zu9Sntngv3ExifzqcTG5gZjWiOknil9P8XDtJ7OaGxXfLUUbkCpGvrtVSGbJh29s6q/GNg+ZNEM2Uc3y6Q5Tt++W1J27Jd/lc+" +
  "axjcx9WKtd+1y5971mEvE9+O3Zu3feDQsb+2EDvBpQgZdD4d60AEPqxx02/KRYvTctTnQthNv3iYEPE2msvrduiolg5OomGZZ0siprzFrFv1ei" +
  "Yte4tfDStxnN7EcWJ3WzcPhlwtFmDGefiO+WPnxPm8nqpsh1bc2mnrDCcTV6OCEb9oJjs75GEPZzqhVVPlvj9/WWfN+KOC3r3kdpFd6KWpO/zu" +
  "Aij6myOMPKH2+WqJF08z4KdzdIemyFPWqNM79roh7wA4heV6Oa+huh0j0PrgSc9U1Ic8fN3mF97xNjht36FnYl9YbbNMG91E/VkPP+fag2gnA7" +
  "+rEd/Uzw2IaRO5EWrzHymoBa0eeYn+sazupm0qnMlJCDon7T4Y9j4nhhUC5/iozSDztqgNuS7lX9uKavAE5N7Eg7wXRyTacx/tTSThO6U9n0KO" +
  "ptSFkUOVo0JqJzsv8qLbmca6tb6Rn86B3OSZNjAIcyBnDXbUyEuTQwF8jpRwE3gRy+BmjIpQJbFp+ex/XF22L6HLhKPKfDewcZ5NPmjGnOIJ82" +
  "82NhIW3OmuYsCmlzFpZ23RZyqhhpgvR+ffSOxbccoYHMlND0833H9d63rPxN2e7aRaca2pwIoAxsysKmHGxyYVMeNt9iujyOc19zn3GpCBtFHc" +
  "t6JoYmG47G+F0Ms8YYdDHMDWMmu5gschoz28Xk+KG8I8SlLsZFXmMudzGceGHMV7uYAgS7OpGGJhbs9QCac/lOx+P8PzIdT4Bz+x1PTHJmv+OJ" +
  "WU7tdzxxiZM5HU9c5ieAjie+6t12svKmbNs3ZTtz01pm8an4j6xEpCq+bSVCVfG7lnnYkAv88vUzR1PC7lWNqfi27Rc8SGXpxgdZ0/hAzEfqhI" +
  "q/mbQ6uvUHrml9yK1/L1S8ws28bGKGKr5j+R4vnpijiv9EI95NEK6K/9TyvU26JUuJ0O6mtm2++tyxdOInvmPpjB+rZaNmUVb94rHk6yeyVDC/" +
  "M9Cqh8sp7dy4cDtV5JO7VG5c+J0qCqmq1K1OOtbj0enY/Kaxha1ju0pV3+qOLfLodGxh01hv69hiV/22VmS8wg8t8YoVaX3GMq2xVmNLq/s/ZO" +
  "fnEvmkLJhSP9D4kRGVsaAOCSpxIcOyfoYrXeWg8Q+lbZvQ7fv6uq7s1rqQ2dXoiC19GXEg/eJ6uCXCLKxE+MiOM4VJrJnVlI2LWN6bFs5mBPdw" +
  "Yasip+b4vUvPYbJG2i0nKQ3vXzLZXFsu2zettnPTSilaJ4TJcZQIMyk5GSbn3vfU2tpMpKo31I+yTSX4kDc/k+FkUK4RhHl+koVbD8Ks+lE2Ut" +
  "XWRx9SoevNUbjLR4Cp+5dnO1Uq6vvquuPl4zAJTXLKPevMml7xC1tH4VIySvAoDzkd3K9Y5m26OK/9Exk6+PG4ZN49Oa7Tx43PxtDD7yqPZdiH" +
  "Xr6GC30Fpz5U0NcJ9KujhiSf9K7+0UxeOdFvbD62LuX+hubLKSvSojOPs4oV79YDZc+vRzCC8nCobMh3z2vp5nXswlKqcFjLzpMfoLWjq/AZ4B" +
  "ugaHwdvyo7UTJHmEyU3AYq/AsJrXDHzFvj+IV/yOGGedjKnq93lzRN/ahwsNJapAqqKheFVYWL+s2lsmmpqkJT/0Igh2pziefjO3g6ZZL+tHTy" +
  "wFFOExVkU2LNT7pSA/9f";

// Where things lie in its memory.
export const ONES = 2048;
export const LEAF_MODELS = 2304;
export const STEPS = 2560;
export const CHILD_MODELS = 2816;
export const NEAR_CELLS = 4096;
export const OWN_CELLS = 5120;
export const EXP2 = 6144;
export const POWERS = 14336;
export const KEYS = 32000;
export const CODERS = 1024;
export const MASK = 128;
export const SCENE = 32256;
export const FIRST = 32448;
export const ORIGIN = 32464;
export const EXPONENT = 32496;
export const OPEN = 32512;
export const MODELS = 32768;
export const FEATURES = 34816;
export const LAYER_STEPS = 37632;
export const STREAMS = 40960;
export const FEATURE_LIST = 48384;
export const BAND_BASIS = 52224;
export const VALUES = 54272;
export const VALUES1 = 80384;
export const VALUES2 = 106496;
export const VALUES3 = 141312;
export const CENTERS = 193536;
export const CENTER = 2176;
export const MEANS = 200064;
export const LINKS = 212352;
export const OUT = 213376;
export const BOX = 217472;
export const END = 259456;
