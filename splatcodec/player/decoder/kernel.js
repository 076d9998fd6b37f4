// Made by tools/player_kernel/build.mjs from kernel.src there. Not to be changed by hand.

/** A WebAssembly module of 10201 bytes, deflated, in base64. */
export const KERNEL =
  "eNrdWl1sHNd1vndmdnd2Z3+G5JIiOaL4nSElrUVKoiSLomxZ5JUoebWWZPknaX5RGZICZ5aOQ2rFIBDRHbQB6hZ+0ENcqI5a0FRQBEVg5CGQCj" +
  "hwVaAPRZGHoOhPiqKoWvQhDwWiBkETtNqwPPfOLElbQfOQpwri3HPP/Tt/955zz13x2vU3pBBCvla5bLXbsn050+Z/XUAwWlyWjHHbyT/ZvixX" +
  "5Mplq81fp71iuojLth5hp+N0lxRhVaR97UvL2TeuvfHm0lctIW2/IqRlO5lszs0XvGKpnHvD9a5eu/Lm1Wvz177cel3I/MIXv9Q0sOV85bWFpr" +
  "ALpsOrX1y4Jpyk9/nXvnptSWSKX1n6Yuvay9euvLl09brIl3T1ldfV0tJrX70uSuWknnYoF/7xQuWvs7KnDVETsSSLy69Jsrl8S5KjBGUgYEEi" +
  "o6xWRC7lwixs5Ba5GuZrQlABbk2I0FO5ZSrCU+tikUooKmc5LKOsxNmIyiio9dHFsIJynfwNZAyUm/ADFFRxeQGVSAmU4QfNsKDi2DlHPcijoP" +
  "wWnINCLKGAnmBaCDjoUbIVkQNbyYhsuCiq9XVbCZ6s2ERJydZBEVcXVOVGpHItlFBSD0U9WuLhvjNnzyGjZBRm1K6GM6faFe//FYMl4XlKUhYZ" +
  "Z05ZhjUVyyhhL09umIMN17BXYPY8MJdhkdljtpi9MkrMXgUVzV6FuR5dDH1U6tSzgYyBShM9ATzNns/sVdATNEPPsNeLArxN9jz0Juz1bmcvj1" +
  "LCXk+AUhPlj7LHEu6y1xNR1lMyzCFT16rMIhsxk5QPXdjIb7LFhPiLSpzVKisuK6/FTFQWo5TE0kdJLCUklraTWIwoixzbDC/LAoaAPS2+JiHg" +
  "TIu3JLJKNivC+5OcRFvFbpjR2ymLjN5OOS7fkuRy+bakvGKbkuRBwlJ2K2ISUTQcOTUxGJbUulykspJUgVD9dWcOGWRR3i/iXpSUuxwpq6Uer8" +
  "uIeqkn9JFDj2G9jzVaRS9LoJ81OoB+rdEdGGCNDmJQa3QQVa3RIQzWaXgDGQODTQwHqGqNDrFGBzEcNMOqEVeAPlRZXK4WVxWBFpeLQIvL1SKi" +
  "HHoxkGh0OMBAEzs+qtEd2LGp0WGqeKho/nJapBm4WqQZFf+e5Que0/+YHH0l6/Bho9BsLMFFvrGU7GUbfpNsePB5dk+JaeFkWKgbJ5uj/lQuks" +
  "81l2vfl4vUwzWfa4/kIvUqQX1KUFUJ6kdZOS0VD0Rahjn0KfF8ZJTUp/5OLMJfQr+S15eVXESfOrKIHkZYGhGhT1UW0csYx2BYBTygFR0UAjtU" +
  "thWhqmz+qwd6dw6yllUcWxjU9YCGwyHkMGx0u5N1O4KAdbuLdTuKXVq3wCjrlkBat4QRrdsQVKexDWQMUBNjAUa0bkPWLWEsaIYjRrfj2ImRTd" +
  "2OYDzR7fh23QYYTXQ7FmC0CXxUtwA2dTtGQ+jDEPpbS9SHKoYiqrIAonBTnHo79Slx1plTsaQ+Janq8W5AgXeGViL6poWDAqpRWIDd2KpvD55y" +
  "I/LgqJ28ZXkb6Sk/Yk4q/oXkPStQqAjvny3t87Rvk3oDZlnyRrcbtuaEOeZ5v4h95bYoD1e3uK+zK4CrZHORXOTJU3xs2mZcQUkUW9f5CEUxQg" +
  "FFo/UyLJRZf6y9CmxTQQWVmnBQQhkOVamPNzL56EEvD6N+eOhHX2uJPPg1PvqURG+Ll9Zk2Ww86NdqKit5ncrdmTPI/VqmLbKmmD0tUBvetBiE" +
  "zXK24Rohs+wzsBhnaQky2vsnS+bbKn7bCnVA4fBkGuLNCIv3pGuKoil83U0bwYa3EtxfF44pXFMUIZNJ/Ao7AVuJhpa8xRvCcebgvM7UwIHDDO" +
  "lla8KhLCxklRvp1Wu8dk247BFZPTmuFfVHo4zSdB9ff7TrXI4ojyxbRsGZg6WqzHDiHywUDIfZlEO2PRcWm14RFvLTws9AMlZAMtaBZKwLbZTM" +
  "mBnrQ/LU0mOhVptmjSbZHphZLdzv9lUqbbnite0V96ZsZ2+6beumbFs3s225Mty2Vtj/yCSck0k4J004x+XbkjJc3mL/JGvi63yuypq4LclVDz" +
  "qSrTSv/tIABfVXBvDUTw1QVD83QEk9NkBZPTJARcWP5YQQ5CtBPSp+3944T+MfeRsnavyNIlXRA2G2SpG793Ph0AAXLu3gokiDKNIQO+AoLDHG" +
  "P0vDSqCE4UBvrGFVXYioqPox2KQA/eiPlIwQtO7TTgxgoFsbYTfTre1CH3YeF7HcOGringgjKRxG2KXhnZ0qjWKkUyVgV6dKNC/0v0eznSqF85" +
  "d+/G9//+/DL8x3quEYjWOMdmOM9igR7lWxTHwC9kYdIQRGO/8pqZbW4x6AEU91ESGIEftQQ63zE4mn8FTnJ7LzSGIf9jEi7DziajiBvdz/v2Xn" +
  "Ek1iDJOd/5K0XwM/kzSJ/TSG8RQ7vokdx+4Uu3sTuxt7DHYP9io/MpTrbTyG8U4pvYn4Pb191f6BHdgTMn2l5GZSSUvsDpngj+E/PgOvtQ+7se" +
  "cJk4+HE5h4wuRj4SQmf9XJ92NfJxCqskgHGLIYOoj9CW6KIY07hP0dktjXIXHFmcMBOoxDdACH6ZCHMnoi5XCAxRAdxgElcACH6wEdwEHwH8MH" +
  "MYUDmNLwFA7hAA5p+JCHXjXVxAE1tdCkw6ZyUFeOmMqUrjxtKod05ai2myljNocTswmncSQBO+9LPJ1a09FNZOd9qazOtyUdw17sjcIZHOv8Qn" +
  "Y8Ed+yMINj4XEcf4LsdJdbusu0qTw0lfAZPPPL+j+6ZWFvSlz8hZS2+AtbiIu/kFKn0fzfE/HXrdS+prR5KaZuULmt+8fFqqUEzShBzypBJ5Sg" +
  "55Sgkyp+YNEsf2tikuZwMpXN7ISYIYXZmpiiU5jDKYNWmJsQAnM14U4IsbZKCnO8InfQBq2SzTs1u3bnsaXiOI7b+ivpDM2HpzGP05hvBOFZnM" +
  "FZnKkHdBona5r2mRvhvFqX4E89oHmc4PXHF/Ecl7XFSMkWdzrDnc6YTme4CXQWs5hJ47uzmI/2ixgRL8BQLaLnOeDnex88PL+BE8jRBTpPL1CD" +
  "zoV12DhnIr2L7NFe5CCOLqGB8yrXinBJZZZ5EL2EF3Be5VsRXuLVwpcPCkGv4OWDwqJXcQmvXtRiellZEb3MfSJ6Ca9u76Hl9CpeaeJFHRNeiv" +
  "BKM3zRhIOfwEW8uHkzehGfSG5Gn9h+M3pJ+RedOS6aylrm5T6pHLyk7MUIn2zhArL4JH2aPhX+Bj6l7OWo83lt59Odkm1JkctmnLSkY/iUyi3S" +
  "Z3CsEwh8psWlZG88is80l5fCzxr4083lJXqJ5+WbIPO2zJ9F1V64TnXW8QOBmRt0DnWcU+0FnGPxhg28gAZeaAThBZzHBZyvB5hpUR2nUY+ogR" +
  "P0HOqoq9Eb1/W3SSfQi5MRTkyzlZ9Ubt2ZUxU0zjlz6rcqHk46c3iWZjJo0LOeh8Y2G7tA58MXcJ611AjCi7iAi7hQD6hh5mywLE/iZMQ7I0Lj" +
  "/nHxQOKkAoc/vewTZzycVE5EJzHLd3ea1VtCq8xBpoEs3O6Fp4LBprJbKn4kognxcJ6URuHZpiq07qu3tEt+jz6nz5zkjtmLvVFNuPfhr+Fz7y" +
  "Wb5dLs2p13N3aLULtonk6Hp3Aap3C6EYRnMI8zmK8HdAo5ZHEq3UX/p07nWadnjU7PbtXpWdbp8wY+01ym0zwth+FDmjRxH6fvJ3Q9nF1VD78r" +
  "cUrZrabZ759HVZ+AE+IHHYnPQ62tHhcCVQ5Hq9irnEjzqgXWo6wWH+PKaS1hSrmtJRxSxdYSZpTf2rimxP9TRB8P7OMjOqJeDomjkGMVPV4mV3" +
  "2ZXPUlstPiluR4CMVpITgeQomBxx2JMgTfWZTYoiidGSjk+pI4Tbadm0GacXOTjFs+ybgVuHybUwNCh2hFLr8uqcTlbUnlNESrpCGan4ZoPUpQ" +
  "Ly+rnJbmBklg0qusVo35pCr6kGmiyjfTzEKT+tO6s5yiBlKU20XtSFHFLoqzB/4yDSkRDqepmH4MG0cWYCAB2VfsSGBOJnzMke3ky22E4YhGsB" +
  "MBRgg0SrsAPYK/DyR2sUcyARJjYhujXUxI3aO+U2XUjc5jGe7CznAUo0+ILwK+JD8BP6L8iEBjFG5fO/zY2mOba48/Ye2PRyoUYhihORo6PZ17" +
  "0pwVnZ7On2l/+Y6lRYesEdPAJpyKL20a3NbUeV/SGIYxhqHOt6VaN5MnHniY/eFwkq5KjsWhGzSiBEEJ2q0E7YGFIX2e74VFNexBcpEFdmsnN3" +
  "QjfIqd3FPGyT2FGju5fdjL7m0f9mh/mfi4fXgq8XET4LxBBXznnNA+rkSHaIoO0gHaH04ij/3Gxx1mH3dE+7inObbSPu7p1McdxUFMaR93VPu4" +
  "afZxxzDNHmwGT2PG+LhpdjrT3Ceio5jZ3kPv3xkca+KI9nFPRzjWDI8YH3cch3GEfVxB+7gjOK59XAHHtUwKyPOceRw1Pu7opo97Rjk4qn3cMy" +
  "0cQhHP0HN0InwWJ7rnYYDgCefhTpzg8/AkdvJ5eLLFZXIenuTzcNbAz7GPO8rzRlT0mLdl/mgfF05ihN3aCMsz3I8D2I8DjSCcYnHhYD3AUIsm" +
  "AdqNSUxqfzap/RnQhz1sPQCzqSuswXcsTEbbvNcvmZhH7WGnxNcHdkp7UdOlsRwt6wK8Boood51THzLmYJVRyOdRkjzNJ8nTgj5RBZ+jt6QSFe" +
  "F91pIrsg1hdtbcqErBS6PqSkAyxf8FJDYrV4LHVmip9dyislsTIp6CpQo3tnrFtYrwnpfWCvhoFko0gvvvQq752dDqbmJsgleD0DaVX/x4Fpvg" +
  "laAivKaUK5zPmBDi3owQsBl0Ye0T4oP3IO8aJNdCJ5lRiKtw5kcad376u7+dq19ZPOPMpbOKR7M8wEsZFY9mzeC7x4Xrfcsr2CuZtr0i21L/Zd" +
  "vWimynN22pbhvAUt8ygK1E6KhHyUXb6c7ZJeTucRF/aMFR8YdWlDb/+dZmFw6fHnoWfXwIyvBtPsxCqKmFiHL6Pu8ii1ySha+J8fuw10yOpKbB" +
  "AoOTGvQ0Tcnp4uik6odWBA7eqRQWUUKR43lTXAnYlSdINymuBoaswQUqdsOC+Te+cerSP5T+Zpa7fOexRH4NRfWdxzLigYW11W7Nh7e2urZKJb" +
  "goHWf76FKhHogIJaqEZVRQZjJMYchIkG5SGDKycHR2tqy+86GFMgdSVOGnEfhmvN8dnyDdpDDjyzVRDX34enfytxn6yMBHphFQBi4HI8ysjLTU" +
  "9J7JqqkoZHmbmCSRwa25u5RnNvhvQkwhv3ZcTG0iZjRi5oni11M8XP/xnOZGxXdL0SakipHvbheSWfLhm1v6q/GtQ6bMkC1Us3y6w9TtuyV152" +
  "7Jd/mceWwjcx/WWtc+V+99r5lEfA9+c+7unXfDwuZ+2ASvBlTg5VC4NyPAkPpRhw0/KdbuzYgTXQvh9n1i8INEGmvvbZhiIhi5tkWGJZ2syhqz" +
  "VvHvlKjYNW4tvPRtRjP7ocVJ3SwcfplwtBnD2Sfiu6UP3tNmsrYlcl1ft6knrHBcjR5OyIa94NisrxGE/ZxqRZXP1vibekt+04o4LeveR2kN3q" +
  "pal7/K4CKPqbI4w8ofbpWokXTzPgp3N0l6bIU9ap0zv+uiHvADiF5Xo5r6G6HSPQ+uBJz1dSfMpmFF7xPjH7xHAym5A8xyfRvLknrDHZroXuqn" +
  "asi5/z5UG0E4iH4Mop+JHt80dCfSIjaGXhNQq/os83Nd41nbSj6VeWVyUNTvOvxxTCwvDMrlT5FR+nFHDXJb0r2qH9j0NcCpiZ1pJ5hOruk0zp" +
  "9a2mlSdyqbHkW9FSmLIkeMxkx0XvZfpSVXcm11Kz2HH73DeWlyDOBQxgDuhp2JMJcG5wI5/TDgJpDDVwENuVRg6+IT9Li+fFtMnwNXied1iO8g" +
  "g3zanDHNGeTTZn4wLKTNWdOcRSFtzsLS7ttCThUjTZDes4/esfimIzSQmRaafr7zuN43LSt/U7a7ttGphjYnAygDm7KwKQebXNiUh803mS6PE9" +
  "zX3GlcKsJGUceznomjyYajMX4Xw6wxBl0Mc8OYqS4mi5zGzHUxOX4s7whxqYtxkdeYy10MJ18Y8+UupgDB7k6k4YkFeyOI5ny+0/H4DQCZjifA" +
  "+f2OJ6Y4u9/xxByn9zueuMQJnY4nLvMzQMcTX/ZuO1l5U7btm7KduWmtsPhU/AdWIlIV37YSoar4Xcs8bshFfv36qaMpYRerxlV82/YLHqSydO" +
  "ODrGl8IBYidULF30haHd36A9e0PuTWvxUqXuVmXjYxQxXfsXyPF0/MUcV/pBHvJghXxX9s+d4W3ZKlRGh309s2X3/uWDr5E9+xdNaP1bJZsyir" +
  "fv5Y8hUUWSqY3xpo1cPltHZuQridKvLJfSo3IfxOFYVUVepWJx3r8eh0bH7L2ML2sV2lqm91xxZ5dDq2sGWst31ssat+WysyXuXHlnjVirQ+Y5" +
  "nWWKuxpdX9H7LzM4l8UhZMqR9p/MiIylhQhwSVuJBhWT/Fla5y4Pj70rZ1GKe+r6/sym5tCJndjY7a0tcRB9IvboRcIszCSoSP7ARTmMSbWU3Z" +
  "hIjlvRnhbEVwDxe2KnJ6jt+89Bwmc6Rdc5LW8P4lk8215Yp902o7N62Uog1CmBxHiTCTkpNhcu59T62vz0aqekP9MNtUgg9581MZTgjlGkGY52" +
  "dZuPUgzKofZiNVbX34ARW6Hh2Fu3wEmLp/ea5TpaK+s244Xz4Ok/Akp9yzzpzpFb+4fRQuJaMEj/KQ0wH+qmXep4sL2h+RoYMfkEvm7ZNjO33c" +
  "+GwMPfy28liGfejlq7jQ13DqQwV9nUC/PGpI8knv6h/O5JUT/drmY+tS7q9pvpyyIi0680CrWPFuPVD2wkYUIygPh8qGfPe8lm5exy8spQqHtu" +
  "w8+RFaO7oKnwG+AYrG1/HLshMlc4TJRMmNoMK/ktAKd8y8NY5h+MccbpiHreyFendJ09SPCgcsrSWqoKpyUVhVuKjfXSpblqoqNPWvBHKoNpd5" +
  "Pr6Hp1MmKVBLJxAc5TRRQTYl1vysKzXw/wUQqwL4";

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
